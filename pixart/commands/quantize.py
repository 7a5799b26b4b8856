"""python -m pixart quantize: a transformer in 8 or 4 bits, in the formats of ComfyUI."""
import argparse
from pathlib import Path

from ..config import VARIANTS
from ..quantize.formats import TARGETS
from .arguments import require_folder


def add_options(command: argparse.ArgumentParser) -> None:
    names = "; ".join(f"{name}: {target.about}" for name, target in TARGETS.items())
    command.add_argument("model", type=Path, help="transformer, a file or folder")
    command.add_argument("--to", required=True, choices=(*TARGETS, "fp16", "bf16", "fp32"), metavar="FORMAT",
                         help=f"{names}; fp16, bf16, fp32: unpack a packed file")
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help=".safetensors file to write")
    command.add_argument("--variant", choices=("auto", *VARIANTS), default="auto",
                         help="which model it is, where its weights cannot tell (default: auto)")
    command.add_argument("--weights-only", action="store_true", help="for float8, nvfp4, mxfp8: have ComfyUI "
                         "unpack weights before it multiplies: slower, but inputs of layers are not rounded too")
    command.add_argument("--report", type=Path, metavar="FILE", help="the error of every layer, as .json or .md")


def run(args: argparse.Namespace) -> None:
    """Convert, and print what each kind of layer lost."""
    from ..quantize.convert import UNPACKED, convert
    from ..quantize.report import table, write_report
    from .progress import Bars
    for path in (args.out, args.report):
        if path is not None:
            require_folder(path)
    check(args)
    if args.report and args.to in UNPACKED:
        raise ValueError(f"--report has no effect with --to {args.to}; leave it out")
    with Bars() as bars:
        errors = convert(args.model, args.to, args.out, args.variant, args.weights_only,
                         lambda done, total: bars("packing", done, total))
    if errors:
        print(table(errors))
    if args.report:
        write_report(errors, args.report)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")


def check(args: argparse.Namespace) -> None:
    """ValueError for a file that would have another format than its name, or would cost the original."""
    if args.out.suffix != ".safetensors":
        raise ValueError(f"packed weights are written as .safetensors; name the file so: {args.out}")
    if args.out.exists() and args.model.exists() and args.out.samefile(args.model):
        raise ValueError(f"--out is the model itself; choose another name: {args.out}")
