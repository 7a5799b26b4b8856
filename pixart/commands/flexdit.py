"""python -m pixart flexdit: a PixArt transformer as the FlexDiT that training starts from."""
import argparse
from dataclasses import fields
from pathlib import Path

from ..config import VARIANTS
from ..dtypes import COMPUTE_DTYPES, dtype_or_auto
from .numbers import finite_number
from .places import require_file_place, require_other_place

SEGMENTS = {"pooling": "first blocks, which only pool (default: 2, or 1 if there are fewer than 16 blocks)",
            "groups": "groups of merge, sparse, recover and dense blocks (default: as many as fit)",
            "sparse": "blocks per group on sparse tokens (default: 3)",
            "dense": "blocks per group on all tokens (default: 1)",
            "top": "last blocks, on all tokens (default: the rest)"}


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", type=Path, help="transformer, a file or folder; not quantised")
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help=".safetensors file to write")
    command.add_argument("--variant", choices=("auto", *VARIANTS), default="auto",
                         help="variant of the model, if its weights do not determine it (default: auto)")
    command.add_argument("--dtype", choices=("auto", *COMPUTE_DTYPES), default="auto",
                         help="type of the written weights (default: unchanged)")
    for name, text in SEGMENTS.items():
        command.add_argument(f"--{name}", type=int, metavar="N", help=text)
    command.add_argument("--r-min", type=finite_number, metavar="R", help="share of tokens pruned at low noise "
                                                                          "(default: 0.61)")
    command.add_argument("--r-max", type=finite_number, metavar="R", help="share of tokens pruned at pure noise "
                                                                          "(default: 0.86)")
    command.add_argument("--pieces", type=int, metavar="N", help="steps from r-min to r-max over the timesteps, 0 "
                                                                 "for linear (default: 3)")


def run(args: argparse.Namespace) -> None:
    """Convert, and print what was made."""
    from ..checkpoint import open_checkpoint, save_checkpoint
    from ..checkpoint.load import describe_checkpoint, dtype_name
    from ..model.to_flexdit import to_flexdit
    from ..train.method_settings import FlexDiTMethod
    require_file_place(args.out)
    require_other_place(args.out, args.model)
    if args.out.suffix != ".safetensors":
        raise ValueError(f"--out is {args.out}; its name must end in .safetensors")
    given = {field.name: getattr(args, field.name) for field in fields(FlexDiTMethod) if hasattr(args, field.name)}
    opened = open_checkpoint(args.model, args.variant)
    config = FlexDiTMethod(**given).config(opened.config)
    model = to_flexdit(opened.load(dtype_or_auto(args.dtype)), config.segments, config.density)
    path = save_checkpoint(args.out, model)
    print(describe_checkpoint(config, False, dtype_name(model.x_embedder.proj.weight), "reference"))
    print(f"{path}: fine-tune it with python -m pixart train flexdit; as it is, its images are poor")
