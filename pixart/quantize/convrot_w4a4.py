"""Rotated whole numbers of 4 bits with one scale a row. The host rounds the layer's inputs to 4 bits as well."""
from typing import ClassVar

import torch
from torch import Tensor

from .format import Format, Options, Tensors
from .int8 import row_scale
from .nibbles import join_nibbles, split_nibbles
from .rotation import SETTING, group_of, group_problem, largest_group, rotate

LARGEST = 7


class ConvRotW4A4(Format):
    """weight (N, K / 2), even columns in the low bits; weight_scale float32 (N,)."""

    name = "convrot_w4a4"
    storage = torch.int8
    rounds_inputs = True
    scales: ClassVar = {"weight_scale": (torch.float32,)}
    multiple = (1, 64)
    columns_per_value = 2

    def options_for(self, shape: tuple[int, int]) -> Options:
        return {SETTING: largest_group(shape[1])}

    def options_problem(self, options: Options, shape: tuple[int, int]) -> str:
        return group_problem(options, shape[1])

    def pack(self, weight: Tensor, options: Options) -> dict[str, Tensor]:
        rotated = rotate(weight, group_of(options))
        scale = row_scale(rotated, LARGEST)
        codes = (rotated / scale).round().clamp(-LARGEST, LARGEST).to(torch.int8)
        return {"weight": join_nibbles(codes.view(torch.uint8)).view(torch.int8), "weight_scale": scale[:, 0]}

    def unpack(self, tensors: Tensors, options: Options) -> Tensor:
        codes = split_nibbles(tensors["weight"]).to(torch.int8)
        signed = torch.where(codes > LARGEST, codes - 16, codes)
        return rotate(signed.float() * tensors["weight_scale"].float()[:, None], group_of(options))

    def scale_shapes(self, shape: tuple[int, int], options: Options) -> dict[str, tuple[tuple[int, ...], ...]]:
        return {"weight_scale": ((shape[0],),)}
