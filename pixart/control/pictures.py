"""Pictures made ready for edge finding: checked, opaque, at the size of the final picture.

Shapes: B pictures, C channels (1 grey, 3 RGB, 4 RGB and alpha), H x W pixels; values 0..1.
"""
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from ..progress import CountProgress

BLACK, GREY, WHITE = 0.0, 0.5, 1.0


def opaque(pictures: Tensor, ground: float = GREY) -> Tensor:
    """(B, 1, 3 or 4, H, W) -> (B, 1 or 3, H, W) float32 in 0..1, what is transparent laid on a ground of one grey.

    Mid-grey by default, so that neither a black nor a white shape on a transparent ground vanishes. Values beyond
    0..1 count as 0 or 1. Raises ValueError for another shape.
    """
    if pictures.ndim != 4 or pictures.shape[1] not in (1, 3, 4) or 0 in pictures.shape:
        raise ValueError(f"pictures have the shape {tuple(pictures.shape)}; expected (pictures, channels, height, "
                         "width) with 1, 3 or 4 channels")
    pictures = pictures.float().clamp(0, 1)
    if pictures.shape[1] < 4:
        return pictures
    return ground + (pictures[:, :3] - ground) * pictures[:, 3:]


def grey(pictures: Tensor) -> Tensor:
    """(B, 1 or 3, H, W) -> (B, 1, H, W), brightness of ITU-R BT.601. Equal channels pass bit for bit."""
    if pictures.shape[1] == 1:
        return pictures
    red, green, blue = pictures.split(1, dim=1)
    return red + 0.587 * (green - red) + 0.114 * (blue - red)


def fit(pictures: Tensor, width: int = 0, height: int = 0) -> Tensor:
    """Scale to `width` x `height` pixels without stretching; what reaches beyond is cut off evenly on both sides.

    0 for one of them: it follows from the other and the shape of the picture. 0 for both: the picture as it is.
    Bilinear, smoothed where it shrinks, as the pictures were in training. Raises ValueError for negative sizes.
    """
    if width < 0 or height < 0:
        raise ValueError(f"a picture of {width} x {height} pixels does not exist; use 0 to keep the picture's own size")
    own_height, own_width = pictures.shape[-2:]
    if not width and not height:
        return pictures
    width = width or max(1, round(own_width * height / own_height))
    height = height or max(1, round(own_height * width / own_width))
    scaled, (top, left) = covering((own_height, own_width), (height, width))
    if scaled != (own_height, own_width):
        pictures = interpolate(pictures, scaled, mode="bilinear", antialias=True)
    return pictures[..., top:top + height, left:left + width]


def covering(own: tuple[int, int], wanted: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The size to which a picture of size `own` is scaled, unstretched, to cover `wanted`; where the cut begins in it.

    Sizes are height and width in pixels; the cut begins at row and column.
    """
    (own_height, own_width), (height, width) = own, wanted
    if height / own_height > width / own_width:
        scaled = height, max(width, round(own_width * height / own_height))
    else:
        scaled = max(height, round(own_height * width / own_width)), width
    return scaled, ((scaled[0] - height) // 2, (scaled[1] - width) // 2)


def with_room(pictures: Tensor, least: int) -> Tensor:
    """Continue sides shorter than `least` pixels to the right and below by their last pixel."""
    missing = [max(0, least - side) for side in pictures.shape[-2:]]
    return pad(pictures, (0, missing[1], 0, missing[0]), mode="replicate") if any(missing) else pictures


def one_by_one(pictures: Tensor, find: Callable[[Tensor], Tensor], progress: CountProgress | None = None) -> Tensor:
    """Maps of the pictures, found one by one: a map never depends on its batch, and memory is that of one picture.

    `progress` is told after each picture, and may raise to stop.
    """
    maps = []
    for picture in pictures.split(1):
        maps.append(find(picture))
        if progress is not None:
            progress(len(maps), len(pictures))
    return torch.cat(maps)
