"""Rotated 4-bit integers with one scale a row. The host rounds the layer's inputs to 4 bits as well."""
from typing import ClassVar

import torch
from torch import Tensor

from .format import Format, FormatOptions, Tensors
from .int8 import row_scale
from .nibbles import join_nibbles, split_nibbles
from .rotation import SETTING, group_problem, largest_group, rotate, rotation_group

INT4_MAX = 7


class ConvRotW4A4(Format):
    """weight (N, K / 2), even columns in the low bits; weight_scale float32 (N,)."""

    name = "convrot_w4a4"
    storage = torch.int8
    rounds_inputs = True
    scales: ClassVar = {"weight_scale": (torch.float32,)}
    multiple = (1, 64)
    columns_per_value = 2

    def options_for(self, shape: tuple[int, int]) -> FormatOptions:
        return {SETTING: largest_group(shape[1])}

    def options_problem(self, options: FormatOptions, shape: tuple[int, int]) -> str:
        return group_problem(options, shape[1])

    def quantize(self, weight: Tensor, options: FormatOptions) -> dict[str, Tensor]:
        rotated = rotate(weight, rotation_group(options))
        scale = row_scale(rotated, INT4_MAX)
        codes = (rotated / scale).round().clamp(-INT4_MAX, INT4_MAX).to(torch.int8)
        return {"weight": join_nibbles(codes.view(torch.uint8)).view(torch.int8), "weight_scale": scale[:, 0]}

    def dequantize(self, tensors: Tensors, options: FormatOptions) -> Tensor:
        codes = split_nibbles(tensors["weight"]).to(torch.int8)
        signed = torch.where(codes > INT4_MAX, codes - 16, codes)
        return rotate(signed.float() * tensors["weight_scale"].float()[:, None], rotation_group(options))

    def scale_shapes(self, shape: tuple[int, int], options: FormatOptions) -> dict[str, tuple[tuple[int, ...], ...]]:
        return {"weight_scale": ((shape[0],),)}
