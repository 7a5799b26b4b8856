"""8-bit integers, rotated or not. Files have one scale a row or one for all; here it is one a row."""
from typing import ClassVar

import torch
from torch import Tensor

from .format import Format, FormatOptions, Tensors
from .rotation import SETTING, group_problem, largest_group, rotate, rotation_group

INT8_MAX = 127
ROTATED = "convrot"


class Int8(Format):
    """weight_scale float32 (N, 1), or one number: the largest value over 127."""

    name = "int8_tensorwise"
    storage = torch.int8
    rounds_inputs = True
    scales: ClassVar = {"weight_scale": (torch.float32,)}

    def quantize(self, weight: Tensor, options: FormatOptions) -> dict[str, Tensor]:
        if is_rotated(options):
            weight = rotate(weight, rotation_group(options))
        scale = row_scale(weight, INT8_MAX)
        return {"weight": (weight / scale).round().clamp(-INT8_MAX, INT8_MAX).to(torch.int8), "weight_scale": scale}

    def dequantize(self, tensors: Tensors, options: FormatOptions) -> Tensor:
        weight = tensors["weight"].float() * tensors["weight_scale"].float()
        return rotate(weight, rotation_group(options)) if is_rotated(options) else weight

    def scale_shapes(self, shape: tuple[int, int], options: FormatOptions) -> dict[str, tuple[tuple[int, ...], ...]]:
        single: tuple[tuple[int, ...], ...] = () if is_rotated(options) else ((), (1,))
        return {"weight_scale": ((shape[0], 1), *single)}

    def options_problem(self, options: FormatOptions, shape: tuple[int, int]) -> str:
        return group_problem(options, shape[1]) if is_rotated(options) else ""


class RotatedInt8(Int8):
    """The same, made with a rotation; in files both have one name."""

    def options_for(self, shape: tuple[int, int]) -> FormatOptions:
        return {ROTATED: True, SETTING: largest_group(shape[1])}

    def why_not(self, shape: tuple[int, int]) -> str:
        return "" if largest_group(shape[1]) else f"columns is {shape[1]}, not a multiple of 16"


def is_rotated(options: FormatOptions) -> bool:
    below = options.get("params")
    return bool(options.get(ROTATED, below.get(ROTATED, False) if isinstance(below, dict) else False))


def row_scale(weight: Tensor, largest: int) -> Tensor:
    """(N, 1): each row's largest value over the largest code; never 0."""
    return (weight.abs().amax(1, keepdim=True) / largest).clamp(min=1e-30)
