"""MXFP8: numbers of 8 bits (E4M3) in blocks of 32 columns, each with a power of two as its scale.

Source: OCP Microscaling Formats (MX) Specification 1.0. Scales are stored as bytes, exponent + 127, which safetensors
of every version can hold.
"""
from typing import ClassVar

import torch
from torch import Tensor

from .float8 import E4M3_MAX
from .format import FLOATS, Format, FormatOptions, Tensors
from .tiles import from_tiles, tiled_shape, to_tiles

MXFP8_BLOCK = 32
BIAS = 127
EXPONENT = getattr(torch, "float8_e8m0fnu", torch.uint8)


class MXFP8(Format):
    """weight_scale uint8 or E8M0 in the order of `tiles`."""

    name = "mxfp8"
    storage = torch.float8_e4m3fn
    scales: ClassVar = {"weight_scale": (torch.uint8, EXPONENT)}
    extras: ClassVar = {"input_scale": FLOATS}
    multiple = (32, MXFP8_BLOCK)

    def quantize(self, weight: Tensor, options: FormatOptions) -> dict[str, Tensor]:
        blocks = weight.unflatten(1, (-1, MXFP8_BLOCK))                                 # (N, K / 32, 32)
        exponent = torch.log2(blocks.abs().amax(2) / E4M3_MAX).ceil().clamp(-BIAS, BIAS)     # of 0: the lowest
        values = blocks / exp2(exponent)[..., None]
        rounded = values.clamp(-E4M3_MAX, E4M3_MAX).to(self.storage).flatten(1)
        return {"weight": rounded, "weight_scale": to_tiles((exponent + BIAS).to(torch.uint8))}

    def dequantize(self, tensors: Tensors, options: FormatOptions) -> Tensor:
        values = tensors["weight"].float().unflatten(1, (-1, MXFP8_BLOCK))
        exponent = from_tiles(tensors["weight_scale"].view(torch.uint8), *values.shape[:2]).float() - BIAS
        return (values * exp2(exponent)[..., None]).flatten(1)

    def scale_shapes(self, shape: tuple[int, int], options: FormatOptions) -> dict[str, tuple[tuple[int, ...], ...]]:
        return {"weight_scale": (tiled_shape(shape[0], shape[1] // MXFP8_BLOCK),), "input_scale": ((), (1,))}


def exp2(exponent: Tensor) -> Tensor:
    """2 ** exponent for whole numbers, exactly, subnormal results included."""
    return torch.ldexp(torch.ones_like(exponent), exponent)
