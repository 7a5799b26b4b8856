"""Which bucket an image belongs to, and what a model is told of its size."""
from dataclasses import dataclass

from ..resolution import nearest_ratio, trained_sizes
from .families import Family

SHARP = 2048                # from this class on images are scaled with Lanczos, below bicubic


class Unfit(ValueError):
    """Why an image belongs to no bucket, as a sentence about it."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Latent sides (h, w) of the bucket, and the size (height, width) in pixels and ratio that a model is told."""

    sides: tuple[int, int]
    size: tuple[float, float]
    aspect: float

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of the images in the bucket."""
        return self.sides[0] * 8, self.sides[1] * 8


def slot_of(size: tuple[int, int], resolution: int, family: Family) -> Slot:
    """The bucket of the trained ratio nearest to that of an image of `size` (height, width) pixels.

    The official training tells a model the image's own size and the ratio as it stands in the table
    (`diffusion/data/datasets/InternalData_ms.py` of PixArt-alpha).
    PixArt-mini is told those of the bucket. Unfit for an image that is too long for its family.
    """
    height, width = size
    if min(size) < 1:
        raise Unfit(f"it is {width} x {height} pixels")
    if max(height / width, width / height) > family.widest:
        raise Unfit(f"its sides are {width} x {height}, more than {family.widest:g} : 1")
    ratio = nearest_ratio(height, width, resolution)
    pixels = trained_sizes(resolution)[ratio]
    told = (size, ratio) if family.tells_original else (pixels, pixels[0] / pixels[1])
    return Slot((pixels[0] // 8, pixels[1] // 8), *told)


def slot_of_latents(sides: tuple[int, int], size: tuple[int, int] | None, resolution: int, family: Family) -> Slot:
    """The bucket of latents that were computed before; with `size` None the model is told the bucket's own."""
    pixels = sides[0] * 8, sides[1] * 8
    if size is None or not family.tells_original:
        return Slot(sides, pixels, pixels[0] / pixels[1])
    return Slot(sides, size, nearest_ratio(*size, resolution))
