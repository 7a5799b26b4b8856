"""Which precision of T5 fits into the memory of a device: sizes by precision, and what "auto" stands for."""
import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..device import PLANNED_SHARE, USUAL_FREE, free_bytes
from .files import T5Files
from .quantized import INT8, Bits, check_bits

AUTO: Bits = "auto"
GIB = 1 << 30
ENCODING = 0.2 * GIB            # what a prompt of 300 tokens takes beside the weights of T5-XXL
NF4_BYTES = 4.127 / 8           # per weight, scales included
# Best first: unquantised, only weights rounded, inputs too except outliers, 4 bits.
ORDER: tuple[Bits, ...] = (16, INT8, 8, 4)


@dataclass(frozen=True)
class FittedT5:
    """How to load a T5. size: bytes with a prompt; None where the user chose it. words: why, a sentence."""

    bits: Bits
    device: torch.device
    size: float | None = None
    words: str = ""


def fit_t5(path: str | Path, bits: Bits, device: torch.device, free: int | None = None) -> FittedT5:
    """Precision and device of a T5 file: those given, or for bits "auto" the best that fits.

    That is the first of 16, int8, 8, 4 whose weights and one prompt fit into 90 % of `free` bytes of the device (by
    default what is free now), else int8 on the CPU. Raises ValueError for unknown bits, and as opening the file
    does.
    """
    if bits != AUTO:
        check_bits(bits)
        return FittedT5(bits, device)
    if free is None:
        free = free_bytes(device)
    return best_t5(USUAL_FREE if free is None else free, T5Files(path).shapes, device, precisions_on(device))


def best_t5(free: int, shapes: Mapping[str, tuple[int, ...]], device: torch.device,
            precisions: tuple[Bits, ...] = ORDER) -> FittedT5:
    """The same for a T5 of these shapes, by the names of transformers; precisions: best first."""
    sizes = {bits: t5_bytes(shapes, bits) + ENCODING for bits in precisions}
    bits: Bits | None = next((each for each in precisions if sizes[each] <= PLANNED_SHARE * free), None)
    start = f"{free / GIB:.1f} GiB are free on {device}: "
    if bits is None:
        words = (f"{start}T5 needs {min(sizes.values()) / GIB:.1f} GiB at least, so it runs on the CPU as int8, where "
                 "a prompt takes seconds.")
        return FittedT5(INT8, torch.device("cpu"), sizes.get(INT8), words)
    return FittedT5(bits, device, sizes[bits], f"{start}T5 is loaded in {named(bits)} ({sizes[bits] / GIB:.1f} GiB).")


def precisions_on(device: torch.device) -> tuple[Bits, ...]:
    """Those of ORDER that are available: 8 and 4 need bitsandbytes, which has no kernels for Apple GPUs."""
    without = device.type == "mps" or importlib.util.find_spec("bitsandbytes") is None
    return tuple(bits for bits in ORDER if bits in (16, INT8) or not without)


def t5_bytes(shapes: Mapping[str, tuple[int, ...]], bits: Bits) -> int:
    """Bytes of the weights of a T5 encoder in memory; shapes by the names of transformers."""
    return int(sum(math.prod(shape) * bytes_of(name, shape, bits) for name, shape in shapes.items()))


def bytes_of(name: str, shape: tuple[int, ...], bits: Bits) -> float:
    """Bytes per number of a tensor: as `bits` for linear layers, but for bitsandbytes' `wo`; 16 bits for the rest."""
    linear = ".SelfAttention." in name or ".DenseReluDense." in name
    if bits == 16 or not linear or "relative_attention_bias" in name or (bits != INT8 and name.endswith(".wo.weight")):
        return 2.0
    return NF4_BYTES if bits == 4 else 1 + 4 / shape[1]         # a scale of 4 bytes for a row


def named(bits: Bits) -> str:
    return "int8" if bits == INT8 else f"{bits} bits"
