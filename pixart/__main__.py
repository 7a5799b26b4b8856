"""The command line: `pixart`, or python -m pixart, with the commands of HELP, and prepare, train and mini."""
import argparse
import importlib
import io
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from .mini import command as mini
from .prepare import command as prepare
from .train import command as train

HELP = {"generate": "generate images from a prompt", "encode": "save an encoded prompt, for use without T5",
        "reno": "optimise the initial noise with reward models (ReNO)",
        "pairs": "generate pairs of noise and image for one-step distillation (DMD)",
        "quantize": "quantise a transformer, ControlNet or T5 to 8 or 4 bits",
        "flexdit": "convert a transformer to a FlexDiT, for fine-tuning",
        "queue": "run a workflow on a ComfyUI server and fetch the images",
        "batch": "generate images for a list of prompts, on one or several devices or a Ray cluster",
        "download": "download published weights into ComfyUI's folders",
        "ecad": "search for cache schedules, or show the content of one"}
ERRORS = (ValueError, OSError, ImportError, FloatingPointError, MemoryError)      # those with a message for the user


KERNELS = "bitsandbytes.backends.cpu.ops"


def is_no_kernel_hint(record: logging.LogRecord) -> bool:
    """False for bitsandbytes' warning about an optional kernel, which breaks a progress bar on every CPU."""
    return "Failed to load CPU gemm_4bit_forward" not in record.getMessage()


def parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands. Only `chosen` gets its options, since listing them imports most of the library."""
    started = Path(sys.argv[0]).name
    main = argparse.ArgumentParser(prog="python -m pixart" if started == "__main__.py" else None,
                                   description="PixArt-alpha, -delta and -Sigma.")
    main.add_argument("--verbose", action="store_true", help="print more about what is loaded")
    commands = main.add_subparsers(dest="command", required=True)
    for name, text in HELP.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == chosen:
            _command(name).add_options(command)
    prepare.add_parser(commands)
    train.add_parser(commands)
    mini.add_parser(commands)
    return main


def _command(name: str) -> ModuleType:
    """The module of a command."""
    return importlib.import_module(f".commands.{name}", __package__)


def run_of(name: str) -> Callable[[argparse.Namespace], None]:
    """The function that runs a command."""
    if name in HELP:
        return _command(name).run
    return {"prepare": prepare.run, "train": train.run, "mini": mini.run}[name]


def keep_printing() -> None:
    """Escape characters that the terminal or file cannot encode, so that a line of output never ends a long run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main() -> int:
    keep_printing()
    chosen = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    args = parser(chosen).parse_args()
    chatty = args.verbose or args.command in ("mini", "train", "ecad")
    logging.basicConfig(level=logging.INFO if chatty else logging.WARNING, format="%(message)s")
    if not args.verbose:
        logging.getLogger(KERNELS).addFilter(is_no_kernel_hint)
    try:
        run_of(args.command)(args)
    except ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    except RuntimeError as error:
        from .device import is_out_of_memory
        if not is_out_of_memory(error):
            raise
        print(f"error: not enough memory ({str(error).splitlines()[0]}); do less at once, in fewer bits, or on another "
              "device", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
