"""How much is decoded at once: as many whole images as memory allows, overlapping tiles if one is too much.

Shapes: B images, H x W latent pixels; an image has eight pixels a latent pixel in both directions.
"""
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .device import PLANNED_SHARE, USUAL_FREE

# Bytes per pixel of an image at the peak of a decoding in float32, measured: 3.0 GiB for 1024 x 1024 with the VAE of
# Stable Diffusion, 0.75 GiB with a tiny one (TAESD).
FULL, TINY = 3200, 800
TILES = (96, 64, 48, 32)    # sides of tiles in latent pixels, the largest first


@dataclass(frozen=True)
class Slices:
    """`count` images at once; with `tile`, one image in tiles of that many latent pixels a side."""

    count: int
    tile: int | None = None

    def smaller(self, side: int) -> "Slices | None":
        """The next to try where this was too much, for a longer side of `side` latent pixels; None at the end."""
        if self.count > 1:
            return Slices(1)
        rest = [tile for tile in TILES if tile < (self.tile or side)]
        return Slices(1, rest[0]) if rest else None

    def __str__(self) -> str:
        if self.tile is not None:
            return f"one image in tiles of {8 * self.tile} pixels"
        return f"{self.count} images at a time" if self.count > 1 else "one image at a time"


def fitting(height: int, width: int, bytes_per_pixel: int, free: int | None, most: int) -> Slices:
    """The largest parts for which `free` bytes suffice, at most `most` images of height x width latent pixels."""
    room = int(PLANNED_SHARE * (USUAL_FREE if free is None else free)) // (64 * bytes_per_pixel)      # latent pixels
    if room >= height * width:
        return Slices(min(most, room // (height * width)))
    return Slices(1, next((side for side in TILES if side * side <= room), TILES[-1]))


def tiled(decode: Callable[[Tensor], Tensor], latent: Tensor, tile: int) -> Tensor:
    """decode (1, C, h, w) -> (1, 3, 8h, 8w) of a whole latent (1, C, H, W), tile by tile; the result is on the CPU.

    Tiles overlap by a quarter, over which one fades into the next. Each tile is normalised by its own statistics and
    attends to itself only, so a large VAE gives colours that differ slightly from decoding in one piece.
    """
    overlap, (height, width) = tile // 4, latent.shape[-2:]
    total, weights = torch.zeros(1, 3, 8 * height, 8 * width), torch.zeros(1, 1, 8 * height, 8 * width)
    for top in starts(height, tile, overlap):
        for left in starts(width, tile, overlap):
            part = decode(latent[:, :, top:top + tile, left:left + tile]).float().cpu()
            fade = ramp(part.shape[-2], 8 * overlap)[:, None] * ramp(part.shape[-1], 8 * overlap)
            place = (..., slice(8 * top, 8 * top + part.shape[-2]), slice(8 * left, 8 * left + part.shape[-1]))
            total[place] += part * fade
            weights[place] += fade
    return total / weights


def starts(length: int, tile: int, overlap: int) -> Iterator[int]:
    """Where tiles begin that cover `length`; the last one is moved back so that all have their full side."""
    last = max(0, length - tile)
    yield from range(0, last, tile - overlap)
    yield last


def ramp(length: int, overlap: int) -> Tensor:
    """(length,) weights that rise over `overlap` pixels to 1 and fall again; nowhere 0."""
    ascent = (torch.arange(length) + 1.0) / (overlap + 1)
    return torch.minimum(ascent, ascent.flip(0)).clamp(max=1)
