"""NVFP4: numbers of 4 bits (E2M1) in blocks of 16 columns, a scale of 8 bits for each, one of 32 bits for all.

Source: NVIDIA, "Introducing NVFP4 for Efficient and Accurate Low-Precision Inference" (2025), for the format.
"""
from typing import ClassVar

import torch
from torch import Tensor

from .float8 import E4M3_MAX
from .format import FLOATS, Format, FormatOptions, Tensors
from .minifloat import MiniFloat
from .nibbles import join_nibbles, split_nibbles
from .tiles import from_tiles, tiled_shape, to_tiles

NVFP4_BLOCK = 16
E2M1 = MiniFloat(2, 1)          # its levels are twice the magnitudes 0, 0.5, 1, 1.5, 2, 3, 4, 6 of NVFP4
FP4_MAX = E2M1.largest / 2


def to_codes(values: Tensor) -> Tensor:
    """float32 of any shape -> codes 0..15 of the nearest values, ties to even codes, clamped to -6..6; uint8."""
    codes = E2M1.nearest((2 * values.abs()).clamp(max=E2M1.largest))
    return codes.to(torch.uint8) | (values.signbit().to(torch.uint8) << 3)


def from_codes(codes: Tensor) -> Tensor:
    """Codes 0..15 -> float32."""
    return (E2M1.signed_values(codes.device) / 2)[codes.long()]


class NVFP4(Format):
    """weight (N, K / 2), weight_scale float8 in the order of `tiles`, weight_scale_2 float32, one number."""

    name = "nvfp4"
    storage = torch.uint8
    scales: ClassVar = {"weight_scale": (torch.float8_e4m3fn, torch.uint8), "weight_scale_2": FLOATS}
    extras: ClassVar = {"input_scale": FLOATS}
    multiple = (16, NVFP4_BLOCK)
    columns_per_value = 2

    def quantize(self, weight: Tensor, options: FormatOptions) -> dict[str, Tensor]:
        blocks = weight.unflatten(1, (-1, NVFP4_BLOCK))                                 # (N, K / 16, 16)
        whole = (weight.abs().amax() / (FP4_MAX * E4M3_MAX)).clamp(min=torch.finfo(torch.float32).tiny)
        scale = (blocks.abs().amax(2) / FP4_MAX / whole).clamp(max=E4M3_MAX).to(torch.float8_e4m3fn)
        steps = (scale.float() * whole)[..., None]
        values = torch.where(steps > 0, blocks / steps, 0.0)
        return {"weight": join_nibbles(to_codes(values.flatten(1)), high_first=True),
                "weight_scale": to_tiles(scale), "weight_scale_2": whole}

    def dequantize(self, tensors: Tensors, options: FormatOptions) -> Tensor:
        values = from_codes(split_nibbles(tensors["weight"], high_first=True)).unflatten(1, (-1, NVFP4_BLOCK))
        tiled = tensors["weight_scale"].view(torch.float8_e4m3fn)
        scale = from_tiles(tiled, values.shape[0], values.shape[1]).float()             # (N, K / 16)
        return (values * (scale * tensors["weight_scale_2"].float())[..., None]).flatten(1)

    def scale_shapes(self, shape: tuple[int, int], options: FormatOptions) -> dict[str, tuple[tuple[int, ...], ...]]:
        single = ((), (1,))
        return {"weight_scale": (tiled_shape(shape[0], shape[1] // NVFP4_BLOCK),), "weight_scale_2": single,
                "input_scale": single}
