"""The command line of the campaign.

    python -m benchmarks gpu --minutes 8 --out DIR       on a machine with a CUDA GPU
    python -m benchmarks gpu --rehearse --out DIR        every stage on the CPU with tiny models, under three minutes

DIR/report.md and DIR/report.json are rewritten after every result, so that results are kept whatever happens
later. What is missing on the machine (bitsandbytes, diffusers, ComfyUI at $COMFYUI_PATH) is a line in the report.
"""
import argparse
import signal
import sys
import time
from pathlib import Path

from pixart.commands.numbers import positive_number

from .stages import STAGES


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("gpu", help="correctness, speed and memory on this machine's GPU, in minutes",
                                 description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=minutes, default=8.0, help="for everything together (default: 8)")
    parser.add_argument("--out", type=Path, required=True, help="folder for report.md and report.json")
    parser.add_argument("--rehearse", action="store_true", help="tiny models on the CPU: proves the campaign itself")
    parser.add_argument("--only", choices=[stage.name for stage in STAGES], nargs="+", help="stages (default: all)")
    parser.add_argument("--work", type=Path, help="folder for weights written meanwhile (default: a temporary one)")
    parser.add_argument("--stage", choices=[stage.name for stage in STAGES], nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=positive_number, help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def minutes(text: str) -> float:
    """Above 0, and less than two years."""
    value = positive_number(text)
    if value >= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} must be less than 1000000 minutes")
    return value


def run(args: argparse.Namespace) -> int:
    """Stages in this process where the campaign asks for them, else the campaign."""
    if args.stage:
        from .stages import perform
        return perform(args.stage, args.rehearse, args.work, args.seconds)
    from .campaign import Campaign
    if not args.rehearse and not cuda_is_there():
        print("no CUDA GPU is at hand here; --rehearse runs every stage on the CPU with tiny models", file=sys.stderr)
        return 2
    started = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))        # on termination the stages must end too
    campaign = Campaign(args.out, 60 * args.minutes, args.rehearse, args.only, args.work)
    failures = campaign.run()
    print(campaign.report.summary(), file=sys.stderr)
    print(f"{campaign.report.path}: {failures} failed, {time.monotonic() - started:.0f} s", file=sys.stderr)
    return 1 if failures else 0


def cuda_is_there() -> bool:
    import torch
    return torch.cuda.is_available()
