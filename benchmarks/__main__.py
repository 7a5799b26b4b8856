"""The command line: python -m benchmarks gpu ..., python -m benchmarks speed ..."""
import argparse
import sys

from .gpu import command as gpu
from .speed import command as speed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=sys.modules[__package__].__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (gpu, speed):
        command.add_parser(commands)
    args = parser.parse_args()
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
