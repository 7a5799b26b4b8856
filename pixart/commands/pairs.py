"""python -m pixart pairs: generate the pairs of noise and image that one-step distillation learns from."""
import argparse
from pathlib import Path

from ..config import VARIANTS
from ..dtypes import COMPUTE_DTYPES, dtype_named
from .arguments import add_device
from .numbers import finite_number, positive_whole


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data", type=Path, required=True, help="folder of captions, written by `prepare`")
    command.add_argument("--model", type=Path, required=True, help="teacher, a file or folder")
    command.add_argument("--variant", choices=("auto", *VARIANTS), default="auto",
                         help="variant of the model, if its weights do not determine it (default: auto)")
    command.add_argument("--out", type=Path, required=True,
                         help="output folder, for `train dmd`; existing pairs are kept")
    command.add_argument("--steps", type=positive_whole, default=20, metavar="N", help="steps of DPM-Solver++ "
                                                                                       "(default: 20)")
    command.add_argument("--guidance", type=finite_number, default=4.5, metavar="W",
                         help="guidance scale of the teacher (default: 4.5)")
    command.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    command.add_argument("--batch", type=positive_whole, default=8, metavar="N", help="images at once (default: 8)")
    command.add_argument("--dtype", choices=COMPUTE_DTYPES, default="fp32",
                         help="precision of the teacher (default: fp32)")
    add_device(command)


def run(args: argparse.Namespace) -> None:
    """Generate what is missing, and say how much that was."""
    from ..checkpoint import load
    from ..device import checked_device
    from ..prepare.pairs import make_pairs
    from .places import require_folder_place
    from .progress import Bars

    require_folder_place(args.out)
    device = checked_device(args.device)
    teacher = load(args.model, args.variant, dtype=dtype_named(args.dtype), device=device)
    with Bars() as bars:
        made = make_pairs(args.data, args.out, teacher, args.steps, args.guidance, args.seed, args.batch,
                          lambda done, total: bars("generating", done, total), args.model)
    print(f"{made} pairs were written to {args.out}")
