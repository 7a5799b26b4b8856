"""Edge maps without weights: Canny lines, soft edges, and drawings taken as they are.

All maps are white on black, as the ControlNet was trained on. Images: (B, 1, 3 or 4, H, W) in 0..1, any size, on any
device. Maps: (B, 1, H, W) float32 in 0..1 on the same device. Blur and slope are those of kornia.
"""
import math
from types import ModuleType

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from .images import BLACK, GREY, WHITE, grey, one_by_one, opaque, with_room

# Background of transparent pixels: the colour that means "no edge here" to the method.
EDGE_METHODS = {"canny": GREY, "soft": GREY, "none": BLACK, "invert": WHITE}


def edge_maps(images: Tensor, method: str, low: float = 0.4, high: float = 0.8, blur: float = 1.0,
              strength: float = 2.0) -> Tensor:
    """Edge maps by method: canny, soft, none (for a white on black drawing), invert (for a black on white one)."""
    if method not in EDGE_METHODS:
        raise ValueError(f"unknown method {method!r}; use {', '.join(EDGE_METHODS)}")
    if method == "canny":
        return canny(images, low, high, blur)
    if method == "soft":
        return soft_edges(images, blur, strength)
    return drawing(images, dark_on_light=method == "invert")


def canny(images: Tensor, low: float = 0.4, high: float = 0.8, blur: float = 1.0, together: bool = False) -> Tensor:
    """Lines one pixel wide, 0 or 1 (Canny, A Computational Approach to Edge Detection, 1986).

    A line starts where the slope of brightness exceeds `high` and goes on while it exceeds `low`. In these units a
    step from black to white has 4 without blur and 2.6 with blur 1. `blur`: standard deviation in pixels of the
    Gaussian before, 0 for none. `together`: all images at once, for training on a GPU; it takes the memory of all.
    Raises ValueError for values out of order, ImportError without kornia.
    """
    if not 0 < low <= high:
        raise ValueError(f"thresholds low {low} and high {high}; expected 0 < low <= high")
    filters = _kornia()

    def find(image: Tensor) -> Tensor:
        ridges = _ridges(*filters.spatial_gradient(_smooth(image, blur), normalized=False).unbind(2))
        return _joined(ridges > low, ridges > high)
    images = grey(opaque(images))
    return find(images) if together else one_by_one(images, find)


def soft_edges(images: Tensor, blur: float = 1.0, strength: float = 2.0) -> Tensor:
    """Soft lines as bright as the step they stand for, in the colour channel where it is steepest.

    Sobel slope after a Gaussian of standard deviation `blur` pixels (0 for none), scaled so that a straight step from
    black to white gives `strength`; cut at 1. Raises ValueError for negative values, ImportError without kornia.
    """
    if not strength >= 0:
        raise ValueError(f"strength {strength}; expected 0 or more")
    filters, gain = _kornia(), strength / _step_response(blur)

    def slope(channel: Tensor) -> Tensor:
        return filters.spatial_gradient(_smooth(channel, blur)).square().sum(2).sqrt()

    def find(image: Tensor) -> Tensor:        # channel by channel: a grey image in RGB is that image to the bit
        steepest = torch.cat([slope(channel) for channel in image.split(1, dim=1)]).amax(0, keepdim=True)
        return (steepest * gain).clamp(0, 1)
    return one_by_one(opaque(images), find)


def drawing(images: Tensor, dark_on_light: bool = False) -> Tensor:
    """A drawn edge map, unchanged but for its colours, which become grey; a dark drawing on light is inverted."""
    lines = grey(opaque(images, WHITE if dark_on_light else BLACK))
    return 1 - lines if dark_on_light else lines


def _ridges(across: Tensor, down: Tensor) -> Tensor:
    """Non-maximum suppression: slopes that are largest along their own direction, rounded to 45 degrees; 0 elsewhere.

    All are (1, 1, H, W). Of two equal ones side by side, as on both sides of a sharp step, the left or upper one stays.
    kornia has the same rule, but before 0.9 it dropped both: sharp outlines had gaps, and without blur hardly anything
    was left.
    """
    slope = (across.square() + down.square()).sqrt()
    direction = torch.atan2(down, across).mul(4 / math.pi).round().remainder(4)
    around, (height, width) = pad(slope, (1, 1, 1, 1)), slope.shape[-2:]
    kept = torch.zeros_like(slope, dtype=torch.bool)
    for index, (x, y) in enumerate(((1, 0), (1, 1), (0, 1), (-1, 1))):
        before = around[..., 1 - y:1 - y + height, 1 - x:1 - x + width]
        after = around[..., 1 + y:1 + y + height, 1 + x:1 + x + width]
        beats_after = slope > after if x and y else slope >= after
        kept |= (direction == index) & (slope > before) & beats_after
    return slope * kept


def _joined(weak: Tensor, strong: Tensor) -> Tensor:
    """Hysteresis: strong pixels, and weak ones that are connected to them in eight directions."""
    weak, strong = weak.float(), strong.float()
    while True:
        grown = max_pool2d(strong, 3, 1, 1) * weak
        if torch.equal(grown, strong):
            return grown
        strong = grown


def _smooth(image: Tensor, blur: float) -> Tensor:
    """Gaussian of standard deviation `blur` pixels; 0 for none."""
    kernel, (height, width) = _kernel(blur), image.shape[-2:]
    if not blur:
        return image
    roomy = with_room(image, kernel // 2 + 1)         # a mirrored border must not be wider than the image
    return _kornia().gaussian_blur2d(roomy, (kernel, kernel), (blur, blur))[..., :height, :width]


def _kernel(blur: float) -> int:
    """Pixels across a Gaussian that reaches two standard deviations."""
    if not 0 <= blur <= 100:
        raise ValueError(f"blur {blur}; expected 0 to 100 pixels")
    return 2 * math.ceil(2 * blur) + 1


def _step_response(blur: float) -> float:
    """Largest Sobel slope, in units per pixel, of a straight step from 0 to 1 after the blur."""
    reach = _kernel(blur) // 2
    weights = [math.exp(-0.5 * (x / blur) ** 2) if x else 1.0 for x in range(reach + 1)]
    neighbour = weights[1] if reach else 0.0
    return 0.5 * (weights[0] + neighbour) / (2 * sum(weights) - weights[0])


def _kornia() -> ModuleType:
    try:
        from kornia import filters
    except ImportError as error:
        raise ImportError("edge maps without weights are made with the package kornia, which comes with ComfyUI; "
                          "elsewhere: pip install \"kornia>=0.7.1\"") from error
    return filters
