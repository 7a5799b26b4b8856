"""Picture files: opened the right way up, whatever their kind, with a reason where that cannot be done; and saved."""
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from torch import Tensor

from .atomic import replacing

if TYPE_CHECKING:
    from PIL.Image import Image

_ORIENTATION = 0x0112
# Value of the orientation entry -> what sets the picture upright, by its name in Pillow.
_UPRIGHT = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270",
            7: "TRANSVERSE", 8: "ROTATE_90"}


class BrokenPicture(ValueError):
    """Why a picture cannot be used, as a sentence about it."""


def read_picture(path: str | Path) -> Tensor:
    """RGB and opacity (1, 4, H, W) in 0..1 of a picture file, upright.

    Raises FileNotFoundError, and ValueError for what is no picture, is cut off, or unpacks to more than Pillow trusts.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"there is no picture file at this place: {path}")
    try:
        with path.open("rb") as file, open_image(file) as picture:
            return pixels_of(picture)
    except (BrokenPicture, IsADirectoryError) as error:
        raise ValueError(f"this picture cannot be used, {error}: {path}") from error


def pixels_of(picture: "Image") -> Tensor:
    """RGB and opacity (1, 4, H, W) in 0..1 of an opened picture, upright. BrokenPicture."""
    whole = upright(picture)
    if whole.mode.startswith(("I", "F")):
        whole = plain_colours(whole)
    return torch.from_numpy(np.array(whole.convert("RGBA"))).permute(2, 0, 1)[None] / 255


def save_picture(path: str | Path, picture: Tensor) -> Path:
    """Write (3, H, W) in 0..1 in the format that the name ends in; a file that was there is replaced in one step."""
    path, kind = Path(path), format_of(path)
    with replacing(path) as beside:
        to_image(picture).save(beside, format=kind)
    return path


def to_image(picture: Tensor) -> "Image":
    """(3, H, W) in 0..1 as a picture of Pillow, in 8 bits."""
    from PIL import Image

    return Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def format_of(path: str | Path) -> str:
    """Pillow's name of the format that a file name ends in. ValueError where it can write none."""
    from PIL import Image

    kind = Image.registered_extensions().get(Path(path).suffix.lower())
    if kind not in Image.SAVE:
        raise ValueError(f"no picture can be written under the ending {Path(path).suffix!r}; use .png, .jpg or .webp: "
                         f"{path}")
    return kind


def open_image(file: BinaryIO, formats: tuple[str, ...] | None = None) -> "Image":
    """A picture of which only the header is read yet, of any format, or of those of Pillow's names. BrokenPicture."""
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(file, formats=formats)
    except UnidentifiedImageError as error:
        file.seek(0)
        expected = " or ".join(formats or ["picture"])
        raise BrokenPicture(f"it is not a {expected}" if file.read(1) else "it is empty") from error
    except Exception as error:          # DecompressionBombError, and whatever damaged headers lead to
        raise BrokenPicture(f"it cannot be opened: {error}") from error


def upright(picture: "Image") -> "Image":
    """The picture, decoded to its end and turned as its metadata say."""
    from PIL import Image

    try:
        picture.load()                  # turns a TIFF, and takes the entry away
        turn = _UPRIGHT.get(orientation(picture) or 1)
        return picture.transpose(Image.Transpose[turn]) if turn else picture
    except BrokenPicture:
        raise
    except Exception as error:          # decoders raise OSError, SyntaxError, struct.error, ... for damaged files
        raise BrokenPicture(f"it is damaged or cut off: {error}") from error


def orientation(picture: "Image") -> int | None:
    """From the metadata before the pixels: Pillow's own method decodes a whole PNG to look behind them too."""
    from PIL import Image

    try:
        return Image.Image.getexif(picture).get(_ORIENTATION)
    except Exception as error:          # the parser of damaged metadata raises whatever it stumbles over
        raise BrokenPicture(f"its metadata is damaged: {error}") from error


def plain_colours(picture: "Image") -> "Image":
    """8-bit red, green and blue, from every mode: palettes, CMYK, 16-bit grey; transparency lies on white."""
    from PIL import Image

    if picture.mode == "F":
        raise BrokenPicture("its pixels are floating-point numbers of unknown range")
    if picture.mode.startswith("I"):            # 16-bit grey, which some files hold as 32-bit whole numbers
        values = np.asarray(picture).astype(np.float64)
        if values.size and not 0 <= values.min() <= values.max() <= 65535:
            raise BrokenPicture("its pixels are beyond the range of 16 bits")
        return Image.fromarray((values / 257).round().astype(np.uint8)).convert("RGB")
    if "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(ground, picture).convert("RGB")
    return picture.convert("RGB")
