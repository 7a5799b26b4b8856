"""Opening pictures of every kind as plain colours the right way up, with a reason where that cannot be done."""
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from torch import Tensor

from .items import Place

if TYPE_CHECKING:
    from PIL.Image import Image

_ORIENTATION = 0x0112
# Value of the orientation entry -> what sets the picture upright, by its name in Pillow.
_UPRIGHT = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270",
            7: "TRANSVERSE", 8: "ROTATE_90"}
_TURNED = {5, 6, 7, 8}          # those that exchange height and width


class BrokenPicture(ValueError):
    """Why a picture cannot be used, as a sentence about it."""


def measure(place: Place) -> tuple[int, int]:
    """Height and width in pixels as people see the picture; reads little more than its header. BrokenPicture."""
    with _file(place) as file, _picture(file) as picture:
        if picture.format == "TIFF":    # Pillow turns these itself, and its versions differ in when the size says so
            upright = _upright(picture)
            return upright.height, upright.width
        turned = _orientation(picture) in _TURNED
        return (picture.width, picture.height) if turned else (picture.height, picture.width)


def load_picture(place: Place, size: tuple[int, int], sharp: bool = False) -> Tensor:
    """uint8 (3, H, W) at `size` (H, W): upright, on white where transparent, scaled to cover the size, centre cut.

    Bicubic scaling, Lanczos where `sharp`. BrokenPicture for a picture that cannot be decoded to its end.
    """
    from PIL import Image

    cut = cover(open_picture(place), size, Image.Resampling.LANCZOS if sharp else Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(cut)).permute(2, 0, 1)


def open_picture(place: Place) -> "Image":
    """The whole picture in plain colours as people see it: upright, on white where transparent. BrokenPicture."""
    with _file(place) as file, _picture(file) as picture:
        return plain_colours(_upright(picture))


def _upright(picture: "Image") -> "Image":
    """The picture, decoded to its end and turned as its metadata say."""
    from PIL import Image

    try:
        picture.load()                  # turns a TIFF, and takes the entry away
        turn = _UPRIGHT.get(_orientation(picture))
        return picture.transpose(Image.Transpose[turn]) if turn else picture
    except BrokenPicture:
        raise
    except Exception as error:          # decoders raise OSError, SyntaxError, struct.error, ... for damaged files
        raise BrokenPicture(f"it is damaged or cut off: {error}") from error


def _file(place: Place) -> BinaryIO:
    try:
        return place.open()
    except OSError as error:
        raise BrokenPicture(f"it cannot be read: {error.strerror or error}") from error


def _picture(file: BinaryIO) -> "Image":
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(file)
    except UnidentifiedImageError as error:
        file.seek(0)
        raise BrokenPicture("it is not a picture" if file.read(1) else "it is empty") from error
    except Exception as error:          # DecompressionBombError, and whatever damaged headers lead to
        raise BrokenPicture(f"it cannot be opened: {error}") from error


def _orientation(picture: "Image") -> int | None:
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


def cover(picture: "Image", size: tuple[int, int], method: int) -> "Image":
    """Scale without stretching until `size` (H, W) is covered, and cut its centre out."""
    height, width = size
    if height / picture.height > width / picture.width:
        scaled = height, max(width, round(picture.width * height / picture.height))
    else:
        scaled = max(height, round(picture.height * width / picture.width)), width
    if scaled != (picture.height, picture.width):
        picture = picture.resize(scaled[::-1], method)
    left, top = (scaled[1] - width) // 2, (scaled[0] - height) // 2
    return picture.crop((left, top, left + width, top + height))
