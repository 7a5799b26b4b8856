"""Options of `generate` for image to image: the start image, how much of it is regenerated, and where."""
import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .numbers import positive_number

if TYPE_CHECKING:
    from ..generation.image_to_image import StartImage


def add_image_options(command: argparse.ArgumentParser) -> None:
    start = command.add_argument_group("image to image, inpainting")
    start.add_argument("--image", type=Path, metavar="FILE", help="start image; the result has its size, or it is "
                                                                  "scaled and cropped to --size")
    start.add_argument("--denoise", type=positive_number, metavar="D",
                       help="how much of --image is regenerated, above 0 to 1, where nothing is left of it (default: 1 "
                            "with --mask, else it must be given)")
    start.add_argument("--mask", type=Path, metavar="FILE", help="image of the size of --image: white is regenerated, "
                                                                 "black keeps its pixels, grey blends")


def require_image(args: argparse.Namespace) -> None:
    """ValueError for options that would change nothing beside the others."""
    given = [name for name in ("denoise", "mask") if getattr(args, name) is not None]
    if given and args.image is None:
        raise ValueError(f"--{given[0]} has no effect without --image, the start image")
    if args.image is not None and not given:
        raise ValueError("--image needs --denoise, how much of it is regenerated, such as 0.6, or --mask, where")


def read_start(args: argparse.Namespace) -> "StartImage | None":
    """The start image that the options ask for. Raises as `read_image`, and ValueError that names a file."""
    if args.image is None:
        return None
    from ..control.images import BLACK, grey, opaque
    from ..files.images import read_image
    from ..generation.image_to_image import start_image

    image = read_image(args.image)
    mask = None if args.mask is None else grey(opaque(read_image(args.mask), BLACK))
    try:
        return start_image(image, args.denoise, mask)
    except ValueError as error:
        raise ValueError(f"{error}: {args.mask or args.image}") from error


def size_of(args: argparse.Namespace, start: "StartImage | None", side: int) -> tuple[int, int]:
    """(width, height) of the result; side: what the model was trained on."""
    from ..generation.image_to_image import output_size

    height, width = output_size(start, None, None, side)
    return args.size or (width, height)


def arguments_of(start: "StartImage | None") -> dict[str, Any]:
    """What a call of the pipeline takes for it."""
    return {} if start is None else {"image": start.image, "denoise": start.denoise, "mask": start.mask}
