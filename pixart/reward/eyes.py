"""What CLIP-type networks are shown of an image: a square of their own size, in their own scale."""
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the images CLIP was trained on, by colour
CLIP_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def middle_square(images: Tensor, side: int) -> Tensor:
    """Images (B, 3, H, W) in 0..1 -> (B, 3, side, side): the shorter side scaled to `side`, the longer one cut.

    Bicubic with antialiasing, as the published preprocessing does it on 8-bit images; here in floats, so that it can
    be differentiated.
    """
    height, width = images.shape[-2:]
    short = min(height, width)
    size = [int(side * height / short), int(side * width / short)]
    top, left = (round((have - side) / 2) for have in size)
    return scaled(images, size)[..., top:top + side, left:left + side]


def whole_in_square(images: Tensor, side: int) -> Tensor:
    """The same with the longer side scaled to `side` and black beside the shorter one, as HPSv2 does it."""
    height, width = images.shape[-2:]
    size = [round(side / max(height, width) * length) for length in (height, width)]
    above, before = ((side - length) // 2 for length in size)
    return F.pad(scaled(images, size), (before, side - size[1] - before, above, side - size[0] - above))


def scaled(images: Tensor, size: list[int]) -> Tensor:
    return F.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)


def clip_normalised(images: Tensor) -> Tensor:
    """0..1 -> the scale of CLIP."""
    return colour_normalised(images, CLIP_MEAN, CLIP_DEVIATION)


def colour_normalised(images: Tensor, mean: Sequence[float], deviation: Sequence[float]) -> Tensor:
    """0..1 -> mean 0 and deviation 1, by colour, of the images a network was trained on."""
    shift, scale = (torch.tensor(values, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
                    for values in (mean, deviation))
    return (images - shift) / scale
