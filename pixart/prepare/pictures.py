"""Training pictures: measured, and cut to the size of their bucket, as plain colours the right way up."""
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..control.pictures import covering
from ..pictures import BrokenPicture, open_image, orientation, plain_colours, upright
from .items import Place

if TYPE_CHECKING:
    from PIL.Image import Image

_TURNED = {5, 6, 7, 8}          # values of the orientation entry that exchange height and width


def picture_size(place: Place) -> tuple[int, int]:
    """Height and width in pixels as people see the picture; reads little more than its header. BrokenPicture."""
    with _file(place) as file, open_image(file) as picture:
        if picture.format == "TIFF":    # Pillow turns these itself, and its versions differ in when the size says so
            turned = upright(picture)
            return turned.height, turned.width
        sideways = orientation(picture) in _TURNED
        return (picture.width, picture.height) if sideways else (picture.height, picture.width)


def load_picture(place: Place, size: tuple[int, int], sharp: bool = False) -> Tensor:
    """uint8 (3, H, W) at `size` (H, W): upright, on white where transparent, scaled to cover the size, centre cut.

    Bicubic scaling, Lanczos where `sharp`. BrokenPicture for a picture that cannot be decoded to its end.
    """
    from PIL import Image

    cut = cover(open_picture(place), size, Image.Resampling.LANCZOS if sharp else Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(cut)).permute(2, 0, 1)


def open_picture(place: Place) -> "Image":
    """The whole picture in plain colours as people see it: upright, on white where transparent. BrokenPicture."""
    with _file(place) as file, open_image(file) as picture:
        return plain_colours(upright(picture))


def _file(place: Place) -> BinaryIO:
    try:
        return place.open()
    except OSError as error:
        raise BrokenPicture(f"it cannot be read: {error.strerror or error}") from error


def cover(picture: "Image", size: tuple[int, int], method: int) -> "Image":
    """Scale without stretching until `size` (H, W) is covered, and cut its centre out."""
    height, width = size
    scaled, (top, left) = covering((picture.height, picture.width), size)
    if scaled != (picture.height, picture.width):
        picture = picture.resize(scaled[::-1], method)
    return picture.crop((left, top, left + width, top + height))
