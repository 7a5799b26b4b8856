"""What fits into the memory of a device: precision and place of T5, whether it stays, how images are decoded.

T5, the transformer and the autoencoder are never needed at the same time, so each is planned for on its own. Constants
were measured on an H200, see docs/measurements-gpu.md.
"""
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from .config import PixArtConfig
from .device import PLANNED_SHARE, USUAL_FREE, free_bytes
from .resolution import latent_sides, token_grid
from .text.files import T5Files
from .text.fitting import GIB, ORDER, best_t5, precisions_on
from .text.quantized import Bits
from .vae_parts import FULL, Slices, fitting

PER_TOKEN = 32_000              # bytes of activations per image token, in 16 bits: 0.12 GiB for 1024 x 1024


@dataclass(frozen=True)
class LoadPlan:
    """What to load, and how. `words` say why, one sentence each; `fits` is False if even this exceeds the memory."""

    bits: Bits
    t5_device: torch.device
    keep_t5: bool                   # beside the transformer
    keep_quantized: bool            # layers of a quantised file stay so, dequantised whenever they run
    parts: Slices                   # of images, for decoding
    fits: bool
    words: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(self.words)


def transformer_bytes(config: PixArtConfig) -> int:
    """Size of the weights in 16 bits."""
    from .checkpoint.layouts import expected_shapes
    return 2 * sum(math.prod(shape) for shape in expected_shapes(config).values())


def pass_bytes(config: PixArtConfig, height: int, width: int, rows: int) -> int:
    """Memory of a pass beyond the weights; rows: images, twice as many with guidance."""
    tokens = math.prod(token_grid(height, width, config.patch))
    return PER_TOKEN * tokens * rows * config.hidden // 1152


def plan_loading(free: int, t5: Mapping[str, tuple[int, ...]], config: PixArtConfig, device: torch.device,
                 height: int | None = None, width: int | None = None, rows: int = 2, quantized_bytes: int | None = None,
                 precisions: tuple[Bits, ...] = ORDER) -> LoadPlan:
    """The best that `free` bytes of a device allow for images of height x width pixels (by default the trained size).

    t5: shapes of its weights. rows: images in a pass, doubled by guidance. quantized_bytes: size of a quantised file of
    the transformer, None for a plain one. precisions: those available there, best first.
    """
    room, side = int(PLANNED_SHARE * free), config.resolution
    height, width = height or side, width or side
    found = best_t5(free, t5, device, precisions)
    transformer, one_pass = transformer_bytes(config), pass_bytes(config, height, width, rows)
    keep_quantized = quantized_bytes is not None and transformer + one_pass > room
    if keep_quantized and quantized_bytes is not None:
        transformer = quantized_bytes
    needed = transformer + one_pass

    def decoded(beside: int) -> Slices:
        return fitting(*latent_sides(height, width), FULL, max(0, free - transformer - beside), max(1, rows // 2))

    beside = None if found.device != device or found.size is None else int(found.size)
    keep = beside is not None and beside + needed <= room and decoded(beside).tile is None
    parts = decoded(beside if keep and beside else 0)
    stays = ("It stays beside the transformer." if keep else "It is freed before the transformer is loaded."
             if found.device == device else "")
    words = tuple(word for word in (found.words, stays, transformer_words(needed, room, keep_quantized),
                                    f"Images are decoded {spoken(parts)}.") if word)
    return LoadPlan(found.bits, found.device, keep, keep_quantized, parts, needed <= room, words)


def transformer_words(needed: int, room: int, quantized: bool) -> str:
    how = "quantised" if quantized else "in 16 bits"
    if needed <= room:
        return f"The transformer {how} needs {needed / GIB:.1f} GiB."
    return (f"The transformer {how} needs {needed / GIB:.1f} GiB, which is too much: generate smaller images, quantise "
            "it (python -m pixart quantize), or let ComfyUI keep a part of it out of the GPU.")


def spoken(parts: Slices) -> str:
    return f"in tiles of {8 * parts.tile} pixels" if parts.tile else "as a whole"


def plan_for(t5: str | Path, config: PixArtConfig, device: torch.device, height: int | None = None,
             width: int | None = None, rows: int = 2, quantized_bytes: int | None = None) -> LoadPlan:
    """`plan_loading` for a T5 file and what is free on a device now. Raises as opening the file does."""
    free = free_bytes(device)
    return plan_loading(USUAL_FREE if free is None else free, T5Files(t5).shapes, config, device, height, width, rows,
                        quantized_bytes, precisions_on(device))
