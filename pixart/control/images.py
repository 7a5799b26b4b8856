"""Images made ready for edge finding: checked, opaque, at the size of the final image.

Shapes: B images, C channels (1 grey, 3 RGB, 4 RGB and alpha), H x W pixels; values 0..1.
"""
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from ..progress import CountProgress

BLACK, GREY, WHITE = 0.0, 0.5, 1.0


def opaque(images: Tensor, ground: float = GREY) -> Tensor:
    """(B, 1, 3 or 4, H, W) -> (B, 1 or 3, H, W) float32 in 0..1, composited onto a uniform grey ground.

    Mid-grey by default, so that neither a black nor a white shape on a transparent ground vanishes. Values beyond
    0..1 count as 0 or 1. Raises ValueError for another shape.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3, 4) or 0 in images.shape:
        raise ValueError(f"images have the shape {tuple(images.shape)}; expected (images, channels, height, "
                         "width) with 1, 3 or 4 channels")
    images = images.float().clamp(0, 1)
    if images.shape[1] < 4:
        return images
    return ground + (images[:, :3] - ground) * images[:, 3:]


def grey(images: Tensor) -> Tensor:
    """(B, 1 or 3, H, W) -> (B, 1, H, W), brightness of ITU-R BT.601. Equal channels pass bit for bit."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    return red + 0.587 * (green - red) + 0.114 * (blue - red)


def fit(images: Tensor, width: int = 0, height: int = 0) -> Tensor:
    """Scale to `width` x `height` pixels without stretching; what reaches beyond is cut off evenly on both sides.

    0 for one of them: it follows from the other and the shape of the image. 0 for both: the image as it is.
    Bilinear, smoothed where it shrinks, as the images were in training. Raises ValueError for negative sizes.
    """
    if width < 0 or height < 0:
        raise ValueError(f"an image of {width} x {height} pixels does not exist; use 0 to keep the image's own size")
    own_height, own_width = images.shape[-2:]
    if not width and not height:
        return images
    width = width or max(1, round(own_width * height / own_height))
    height = height or max(1, round(own_height * width / own_width))
    scaled, (top, left) = covering((own_height, own_width), (height, width))
    if scaled != (own_height, own_width):
        images = interpolate(images, scaled, mode="bilinear", antialias=True)
    return images[..., top:top + height, left:left + width]


def covering(own: tuple[int, int], wanted: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The size to which an image of size `own` is scaled, unstretched, to cover `wanted`; where the cut begins in it.

    Sizes are height and width in pixels; the cut begins at row and column.
    """
    (own_height, own_width), (height, width) = own, wanted
    if height / own_height > width / own_width:
        scaled = height, max(width, round(own_width * height / own_height))
    else:
        scaled = max(height, round(own_height * width / own_width)), width
    return scaled, ((scaled[0] - height) // 2, (scaled[1] - width) // 2)


def with_room(images: Tensor, least: int) -> Tensor:
    """Pad sides shorter than `least` pixels, to the right and below, by repeating their last pixel."""
    missing = [max(0, least - side) for side in images.shape[-2:]]
    return pad(images, (0, missing[1], 0, missing[0]), mode="replicate") if any(missing) else images


def one_by_one(images: Tensor, find: Callable[[Tensor], Tensor], progress: CountProgress | None = None) -> Tensor:
    """Maps of the images, found one by one: a map never depends on its batch, and memory is that of one image.

    `progress` is called after each image, and may raise to stop.
    """
    maps = []
    for image in images.split(1):
        maps.append(find(image))
        if progress is not None:
            progress(len(maps), len(images))
    return torch.cat(maps)
