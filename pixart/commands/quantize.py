"""python -m pixart quantize: a transformer, ControlNet or T5 in 8 or 4 bits, in the formats of ComfyUI, or fp4."""
import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import VARIANTS
from ..quantize.formats import TARGETS
from .arguments import add_bits, add_device
from .numbers import finite_number, positive_whole
from .places import require_file_place, require_other_place

if TYPE_CHECKING:
    from ..config import PixArtConfig
    from ..quantize.convert import LayerOptions
    from ..quantize.format import FormatOptions
    from ..quantize.report import LayerError
    from .progress import Bars

PARTS = ("transformer", "controlnet", "t5")
CALIBRATION = ("prompts", "t5", "bits", "passes", "iterations", "rate", "seed", "device")


def add_options(command: argparse.ArgumentParser) -> None:
    names = "; ".join(f"{name}: {target.about}" for name, target in TARGETS.items())
    command.add_argument("model", type=Path, help="transformer, ControlNet or T5 encoder, a file or folder")
    command.add_argument("--part", choices=PARTS, help="part to quantise, if the file has a transformer and its "
                                                       "ControlNet; a ControlNet is then written alone")
    command.add_argument("--to", required=True, choices=(*TARGETS, "fp16", "bf16", "fp32"), metavar="FORMAT",
                         help=f"{names}; fp16, bf16, fp32: dequantise a quantised file")
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help=".safetensors file to write")
    command.add_argument("--variant", choices=("auto", *VARIANTS), default="auto",
                         help="variant of the model, if its weights do not determine it (default: auto)")
    command.add_argument("--weights-only", action="store_true", help="for float8, nvfp4, mxfp8: ComfyUI dequantises "
                                                                     "weights before multiplying: slower, but layer "
                                                                     "inputs are not rounded")
    command.add_argument("--report", type=Path, metavar="FILE", help="write the error of every layer, as .json or .md")
    _add_fp4(command)


def _add_fp4(command: argparse.ArgumentParser) -> None:
    fp4 = command.add_argument_group("for --to fp4")
    fp4.add_argument("--floats", metavar="FC1,REST", help="number formats of the first linear layer of the MLP and "
                                                          "of all others: e3m0, e2m1 or e1m2 (default, as in the "
                                                          "paper: e3m0, and e2m1 for alpha or e1m2 for Sigma)")
    fp4.add_argument("--rank", type=positive_whole, metavar="R",
                     help="add a 16-bit low-rank branch of rank R to every layer")
    fp4.add_argument("--prompts", type=Path, metavar="FILE", help="learn the rounding (FP4DiT) by sampling these "
                                                                  "prompts, one per line; resumes (default: round to "
                                                                  "nearest)")
    fp4.add_argument("--t5", type=Path, help="T5 encoder for --prompts, a file or folder (default: that of PixArt-mini "
                     "for its own models)")
    add_bits(fp4, "8; 16 for the small one of PixArt-mini")
    fp4.add_argument("--passes", type=positive_whole, metavar="N", help="number of forward passes to learn from "
                                                                        "(default: 256)")
    fp4.add_argument("--iterations", type=positive_whole, metavar="N", help="learning iterations per block (default: "
                                                                            "2500)")
    fp4.add_argument("--rate", type=finite_number, metavar="LR", help="learning rate (default: 1e-4)")
    fp4.add_argument("--seed", type=int, help="seed of the noise and of the choice of passes (default: 0)")
    add_device(fp4)


def run(args: argparse.Namespace) -> None:
    """Convert, and print what each kind of layer lost."""
    from ..quantize.companions import part_in
    from ..quantize.convert import PLAIN_TARGETS, convert
    from ..quantize.report import error_table, write_errors
    from .progress import Bars
    for path, option in ((args.out, "--out"), (args.report, "--report")):
        if path is not None:
            require_file_place(path)
            require_other_place(path, args.model, args.t5, args.prompts, option=option)
    check_target(args)
    if args.report and args.to in PLAIN_TARGETS:
        raise ValueError(f"--report has no effect with --to {args.to}; leave it out")
    part = args.part or part_in(args.model)
    with Bars() as bars:
        if part != "transformer":
            errors = convert_beside(part, args, bars)
        elif args.prompts:
            errors = adapt(args, bars)
        else:
            errors = convert(args.model, args.to, args.out, args.variant, args.weights_only,
                             lambda done, total: bars("quantising", done, total), fp4_settings(args))
    if errors:
        print(error_table(errors))
    if args.report:
        write_errors(errors, args.report)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")


def convert_beside(part: str, args: argparse.Namespace, bars: "Bars") -> "list[LayerError]":
    """A ControlNet or T5. ValueError for what only a transformer can be converted to."""
    from ..quantize.companions import convert_control, convert_t5
    from ..quantize.convert import PLAIN_TARGETS
    if args.to in PLAIN_TARGETS:
        raise ValueError(f"--to {args.to} dequantises transformers; a quantised ControlNet or T5 opens as it is: "
                         f"{args.model}")
    if args.variant != "auto":
        raise ValueError("--variant has no effect on a ControlNet or T5; leave it out")
    make = convert_control if part == "controlnet" else convert_t5
    return make(args.model, args.to, args.out, args.weights_only,
                lambda done, total: bars("quantising", done, total))


def fp4_settings(args: argparse.Namespace) -> "LayerOptions | None":
    """What --floats and --rank say of each layer; None where they say nothing."""
    if args.floats is None and args.rank is None:
        return None
    from ..quantize.fp4 import FLOAT, MINI_FLOATS, RANK
    names = args.floats.lower().split(",") if args.floats else []
    if args.floats and (len(names) != 2 or not set(names) <= set(MINI_FLOATS)):
        raise ValueError(f"--floats {args.floats} are not two of {', '.join(MINI_FLOATS)}, with a comma between")

    def settings(layer: str, config: "PixArtConfig") -> "FormatOptions":
        own = dict(TARGETS["fp4"].settings(layer, config))
        if names:
            own[FLOAT] = names[0 if layer.endswith("mlp.fc1") else 1]
        return own if args.rank is None else {**own, RANK: args.rank}
    return settings


def adapt(args: argparse.Namespace, bars: "Bars") -> "list[LayerError]":
    """Learn the rounding, on what the transformer is given while it samples --prompts."""
    from ..device import checked_device
    from ..files.prompts import read_lines
    from ..quantize.adapted import convert_adapted
    from ..quantize.adaptive import Adaptation
    from ..quantize.calibrate import record
    from ..quantize.calibration_sampling import Calibration
    from ..quantize.convert import open_plain
    device, usual = checked_device(args.device), Adaptation()
    checkpoint = open_plain(args.model, args.variant)
    prompts = read_lines(args.prompts, "prompts")
    calibration = Calibration.of(checkpoint, prompts, args.t5, args.bits, args.passes or 256, args.seed or 0)
    wanted = Adaptation(args.iterations or usual.iterations,
                        usual.learning_rate if args.rate is None else args.rate, seed=args.seed or 0)
    return convert_adapted(checkpoint, args.out,
                           lambda model: record(model, *calibration.encoded(device, bars), calibration.passes, bars),
                           calibration.about, wanted, fp4_settings(args), device, bars)


def check_target(args: argparse.Namespace) -> None:
    """ValueError for a file that would have another format than its name, and for options that mean nothing for the
    target."""
    from ..quantize.convert import no_effect
    if args.out.suffix != ".safetensors":
        raise ValueError(f"quantised weights are written as .safetensors; name the file so: {args.out}")
    if args.to != "fp4" and (given := [name for name in ("floats", "rank", *CALIBRATION)
                                       if getattr(args, name) is not None]):
        raise ValueError(f"--{given[0]} has no effect with --to {args.to}; leave it out, or choose fp4")
    if args.prompts is None and (given := [name for name in CALIBRATION if getattr(args, name) is not None]):
        raise ValueError(f"--{given[0]} has no effect without --prompts; leave it out, or give prompts")
    if args.weights_only and (reason := no_effect(args.to)):
        raise ValueError(f"--weights-only has no effect with --to {args.to}: {reason}")
