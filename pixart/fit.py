"""What fits into the memory of a device: precision and place of T5, whether it stays, how pictures are decoded.

T5, the transformer and the autoencoder are never needed at the same time, so each is looked at alone. Figures that are
not computed are of an H200, docs/measurements-gpu.md.
"""
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from .config import PixArtConfig
from .text.quantized import INT8, Bits
from .vae_parts import FULL, Slices, fitting

GIB = 1 << 30
SPARE = 0.9                     # share of the free memory to plan with
ENCODING = 0.2 * GIB            # what a prompt of 300 tokens takes beside the weights of T5-XXL
PER_TOKEN = 32_000              # bytes a picture's token takes in a pass, in 16 bits: 0.12 GiB for 1024 x 1024
NF4_BYTES = 4.127 / 8           # a weight, scales included
# Best first: exact, weights alone rounded, inputs too where they are not extreme, 4 bits.
ORDER: tuple[Bits, ...] = (16, INT8, 8, 4)


@dataclass(frozen=True)
class Plan:
    """What to load how. `words` say why, one sentence each; `fits` is False where even that will be too much."""

    bits: Bits
    t5_device: torch.device
    keep_t5: bool                   # beside the transformer
    keep_packed: bool               # layers of a packed file are left so, unpacked whenever they run
    parts: Slices                   # of pictures, for decoding
    fits: bool
    words: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(self.words)


def t5_bytes(shapes: Mapping[str, tuple[int, ...]], bits: Bits) -> int:
    """Of the weights of a T5 encoder in memory; shapes by the names of transformers."""
    return int(sum(math.prod(shape) * bytes_of(name, shape, bits) for name, shape in shapes.items()))


def bytes_of(name: str, shape: tuple[int, ...], bits: Bits) -> float:
    """A weight: linear layers in the precision, bitsandbytes leaves `wo` in 16 bits, everything else has them too."""
    linear = ".SelfAttention." in name or ".DenseReluDense." in name
    if bits == 16 or not linear or "relative_attention_bias" in name or (bits != INT8 and name.endswith(".wo.weight")):
        return 2.0
    return NF4_BYTES if bits == 4 else 1 + 4 / shape[1]         # a scale of 4 bytes for a row


def transformer_bytes(config: PixArtConfig) -> int:
    """Of the weights in 16 bits."""
    from .checkpoint.layouts import expected_shapes
    return 2 * sum(math.prod(shape) for shape in expected_shapes(config).values())


def pass_bytes(config: PixArtConfig, height: int, width: int, rows: int) -> int:
    """What a pass takes beside the weights; rows: pictures, twice as many with guidance."""
    tokens = (height // 8 // config.patch) * (width // 8 // config.patch)
    return PER_TOKEN * tokens * rows * config.hidden // 1152


def plan(free: int, t5: Mapping[str, tuple[int, ...]], config: PixArtConfig, device: torch.device,
         height: int | None = None, width: int | None = None, rows: int = 2, packed_bytes: int | None = None,
         precisions: tuple[Bits, ...] = ORDER) -> Plan:
    """The best that `free` bytes of a device allow for pictures of height x width pixels (by default the trained size).

    t5: shapes of its weights. rows: pictures in a pass, doubled by guidance. packed_bytes: size of a packed file of
    the transformer, None for a plain one. precisions: those that can be had there, best first.
    """
    room, side = int(SPARE * free), config.resolution
    height, width = height or side, width or side
    sizes = {bits: t5_bytes(t5, bits) + ENCODING for bits in precisions}
    bits: Bits | None = next((each for each in precisions if sizes[each] <= room), None)
    drawing = transformer_bytes(config) + pass_bytes(config, height, width, rows)
    keep_packed = packed_bytes is not None and drawing > room
    if keep_packed and packed_bytes is not None:
        drawing = packed_bytes + pass_bytes(config, height, width, rows)
    parts = fitting(height // 8, width // 8, FULL, free, max(1, rows // 2))
    keep = bits is not None and sizes[bits] + drawing <= room
    place = device if bits is not None else torch.device("cpu")
    words = (f"{free / GIB:.1f} GiB are free on {device}.", t5_words(bits, sizes, place, keep),
             drawing_words(drawing, room, keep_packed), f"Pictures are decoded {spoken(parts)}.")
    return Plan(INT8 if bits is None else bits, place, keep, keep_packed, parts, drawing <= room, words)


def t5_words(bits: Bits | None, sizes: Mapping[Bits, float], place: torch.device, keep: bool) -> str:
    if bits is None:
        return (f"T5 needs {min(sizes.values()) / GIB:.1f} GiB at least, so it runs on the CPU as int8, where a prompt "
                "takes seconds.")
    stays = "stays there" if keep else "leaves before the transformer comes"
    return f"T5 is loaded in {named(bits)} ({sizes[bits] / GIB:.1f} GiB) on {place} and {stays}."


def drawing_words(drawing: int, room: int, packed: bool) -> str:
    how = "packed" if packed else "in 16 bits"
    if drawing <= room:
        return f"The transformer {how} needs {drawing / GIB:.1f} GiB."
    return (f"The transformer {how} needs {drawing / GIB:.1f} GiB, which is too much: draw smaller pictures, pack it "
            "(python -m pixart quantize), or let ComfyUI keep a part of it out of the GPU.")


def named(bits: Bits) -> str:
    return "int8" if bits == INT8 else f"{bits} bits"


def spoken(parts: Slices) -> str:
    return f"in tiles of {8 * parts.tile} pixels" if parts.tile else "as a whole"


def plan_for(t5: str | Path, config: PixArtConfig, device: torch.device, height: int | None = None,
             width: int | None = None, rows: int = 2, packed_bytes: int | None = None) -> Plan:
    """`plan` for a T5 file and what is free on a device now. Raises as opening the file does."""
    from .device import free_bytes
    from .text.files import T5Files
    free = free_bytes(device)
    precisions = tuple(each for each in ORDER if each in (16, INT8) or device.type != "mps")
    return plan(4 * GIB if free is None else free, T5Files(t5).shapes, config, device, height, width, rows,
                packed_bytes, precisions)
