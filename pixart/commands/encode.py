"""python -m pixart encode: save an encoded prompt."""
import argparse
from pathlib import Path

from ..prepare.families import FAMILIES
from .arguments import add_bits, add_device, add_long
from .numbers import positive_whole
from .places import require_file_place, require_other_place


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("prompt", help="the prompt")
    command.add_argument("--t5", type=Path, required=True, help="T5 encoder, a file or folder")
    command.add_argument("--family", choices=tuple(FAMILIES), default="alpha",
                         help="family of the model the prompt is for: how its captions were cleaned and cut in "
                              "training; alpha: also delta (default: alpha)")
    command.add_argument("--max-tokens", type=positive_whole, metavar="N",
                         help="maximum length (default: of the family, alpha 120, sigma 300, mini 256)")
    command.add_argument("--clean", action=argparse.BooleanOptionalAction,
                         help="clean the caption (default: as in training of the family; sigma: no)")
    add_long(command)
    command.add_argument("--out", type=Path, default=Path("prompt.safetensors"), metavar="FILE",
                         help="file to write, for generate --embeddings (default: prompt.safetensors)")
    add_bits(command, "8; 16 on Apple GPUs")
    add_device(command)


def run(args: argparse.Namespace) -> None:
    """Encode, save, and print what became of the prompt."""
    from functools import partial

    from ..device import checked_device
    from ..text.encoded import save_embeddings
    from ..text.long import check_mode, encode_long
    from ..text.on_demand import T5OnDemand
    from ..text.quantized import usual_bits
    from .progress import Bars

    require_file_place(args.out)
    require_other_place(args.out, args.t5)
    check_mode(args.long, args.inner_ends)
    device = checked_device(args.device)
    family = FAMILIES[args.family]
    limit, clean = args.max_tokens or family.tokens, family.clean if args.clean is None else args.clean
    encoder = T5OnDemand(args.t5, args.bits or usual_bits(device), device)
    with Bars() as bars:
        encoded = encode_long(lambda some, most: encoder.encode(some, most, clean, partial(bars, "reading T5")),
                              [args.prompt], limit, args.long, args.inner_ends)
    save_embeddings(args.out, encoded)
    print(*(encoded.reports[0].summary, *encoded.reports[0].notes), sep="\n")
    print(args.out)
