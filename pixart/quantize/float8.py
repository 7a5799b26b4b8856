"""Floating-point numbers of 8 bits with one scale for the whole weight."""
from typing import ClassVar

import torch
from torch import Tensor

from .format import FLOATS, Format, FormatOptions, Tensors

E4M3_MAX = torch.finfo(torch.float8_e4m3fn).max


class Float8(Format):
    """weight_scale float32, one number: the largest value of the weight over the largest one of the type."""

    scales: ClassVar = {"weight_scale": FLOATS}
    extras: ClassVar = {"input_scale": FLOATS}

    def quantize(self, weight: Tensor, options: FormatOptions) -> dict[str, Tensor]:
        largest = torch.finfo(self.storage).max
        scale = (weight.abs().amax() / largest).clamp(min=torch.finfo(torch.float32).tiny)
        return {"weight": (weight / scale).clamp(-largest, largest).to(self.storage), "weight_scale": scale}

    def dequantize(self, tensors: Tensors, options: FormatOptions) -> Tensor:
        return tensors["weight"].float() * tensors["weight_scale"].float()

    def scale_shapes(self, shape: tuple[int, int], options: FormatOptions) -> dict[str, tuple[tuple[int, ...], ...]]:
        return dict.fromkeys(("weight_scale", "input_scale"), ((), (1,)))


class Float8E4M3(Float8):
    name = "float8_e4m3fn"
    storage = torch.float8_e4m3fn


class Float8E5M2(Float8):
    name = "float8_e5m2"
    storage = torch.float8_e5m2
