"""Training images: measured, and cut to the size of their bucket, as plain colours the right way up."""
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..control.images import covering
from ..files.images import BrokenImage, open_image, orientation, plain_colours, upright
from .items import Place

if TYPE_CHECKING:
    from PIL.Image import Image

_TURNED = {5, 6, 7, 8}          # values of the orientation entry that exchange height and width


def image_size(place: Place) -> tuple[int, int]:
    """Height and width in pixels as people see the image; reads little more than its header. BrokenImage."""
    with _file(place) as file, open_image(file) as image:
        if image.format == "TIFF":    # Pillow turns these itself, and its versions differ in when the size says so
            turned = upright(image)
            return turned.height, turned.width
        sideways = orientation(image) in _TURNED
        return (image.width, image.height) if sideways else (image.height, image.width)


def load_image(place: Place, size: tuple[int, int], sharp: bool = False) -> Tensor:
    """uint8 (3, H, W) at `size` (H, W): upright, on white where transparent, scaled to cover the size, centre cut.

    Bicubic scaling, Lanczos where `sharp`. BrokenImage for an image that cannot be decoded to its end.
    """
    from PIL import Image

    cut = cover(open_upright(place), size, Image.Resampling.LANCZOS if sharp else Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(cut)).permute(2, 0, 1)


def open_upright(place: Place) -> "Image":
    """The whole image in plain colours as people see it: upright, on white where transparent. BrokenImage."""
    with _file(place) as file, open_image(file) as image:
        return plain_colours(upright(image))


def _file(place: Place) -> BinaryIO:
    try:
        return place.open()
    except OSError as error:
        raise BrokenImage(f"it cannot be read: {error.strerror or error}") from error


def cover(image: "Image", size: tuple[int, int], method: int) -> "Image":
    """Scale without stretching until `size` (H, W) is covered, and cut its centre out."""
    height, width = size
    scaled, (top, left) = covering((image.height, image.width), size)
    if scaled != (image.height, image.width):
        image = image.resize(scaled[::-1], method)
    return image.crop((left, top, left + width, top + height))
