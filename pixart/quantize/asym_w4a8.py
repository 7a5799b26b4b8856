"""Rotated codes of 4 bits into a table of 16 values, with scales of 8 bits for groups of columns.

A code c in a group with scale r stands for round(table[c] * r), a whole number within -127..127 that the host
multiplies with inputs of 8 bits; that times the scale of its row is the rotated weight. The table is fitted to each
weight by Lloyd's method (Lloyd, "Least squares quantization in PCM", 1982); without one in a file, codes are -8..7.
"""
from typing import ClassVar

import torch
from torch import Tensor

from .format import Format, FormatOptions, Tensors, positive_option
from .int8 import INT8_MAX
from .nibbles import join_nibbles, split_nibbles
from .rotation import SETTING, group_problem, largest_group, rotate, rotation_group

ASYM_GROUP = 16         # columns that share a scale
CODEBOOK_SIZE = 16
CODEBOOK_SAMPLE, CODEBOOK_ROUNDS = 1 << 16, 25  # values that the table is fitted to; iterations
REFITS = 2                          # of the scales to the codes


class AsymW4A8(Format):
    """weight (N, K / 2), even columns in the low bits; weight_s_rel float8 (N, K / 16), weight_s_channel float32 (N,),
    weight_codebook float32 (16,)."""

    name = "asym_w4a8_int8"
    storage = torch.int8
    rounds_inputs = True
    scales: ClassVar = {"weight_s_rel": (torch.float8_e4m3fn, torch.uint8, torch.float32),
                        "weight_s_channel": (torch.float32,)}
    extras: ClassVar = {"weight_codebook": (torch.float32,)}
    multiple = (1, ASYM_GROUP)
    columns_per_value = 2

    def options_for(self, shape: tuple[int, int]) -> FormatOptions:
        return {"group_size": ASYM_GROUP, SETTING: largest_group(shape[1])}

    def options_problem(self, options: FormatOptions, shape: tuple[int, int]) -> str:
        group = positive_option(options, "group_size", ASYM_GROUP)
        if group < 4 or shape[1] % group or (16 % group and group % 16):
            return (f"group_size is {group or 'no number'}; it must divide its {shape[1]} columns, and divide 16 or be "
                    "a multiple of it")
        return group_problem(options, shape[1])

    def quantize(self, weight: Tensor, options: FormatOptions) -> dict[str, Tensor]:
        size = positive_option(options, "group_size", ASYM_GROUP)
        groups = rotate(weight, rotation_group(options)).unflatten(1, (-1, size))
        scale = groups.abs().amax(2, keepdim=True).clamp(min=1e-8)                      # (N, groups, 1)
        table = fit_table(groups / scale)
        for _ in range(REFITS):
            near = table[nearest(groups / scale, table)]
            scale = ((groups * near).sum(2, keepdim=True) / (near * near).sum(2, keepdim=True).clamp(min=1e-8)
                     ).clamp(min=1e-8)
        near = table[nearest(groups / scale, table)]
        row = ((near * scale).abs().amax((1, 2)) / INT8_MAX).clamp(min=1e-8)             # (N,)
        relative = (scale[..., 0] / row[:, None]).to(torch.float8_e4m3fn)               # (N, groups)
        levels = decoded(table, relative.float())                                       # (N, groups, 16)
        codes = nearest_of_each(groups / row[:, None, None], levels).flatten(1)
        return {"weight": join_nibbles(codes).view(torch.int8), "weight_s_rel": relative, "weight_s_channel": row,
                "weight_codebook": table}

    def dequantize(self, tensors: Tensors, options: FormatOptions) -> Tensor:
        relative = tensors["weight_s_rel"]
        relative = (relative.view(torch.float8_e4m3fn) if relative.dtype == torch.uint8 else relative).float()
        codes = split_nibbles(tensors["weight"]).long().unflatten(1, (relative.shape[1], -1))
        table = tensors.get("weight_codebook")
        table = torch.arange(-8.0, 8.0, device=codes.device) if table is None else table.float()
        values = (table[codes] * relative[..., None]).round().clamp(-INT8_MAX, INT8_MAX).flatten(1)
        return rotate(values * tensors["weight_s_channel"].float()[:, None], rotation_group(options))

    def scale_shapes(self, shape: tuple[int, int], options: FormatOptions) -> dict[str, tuple[tuple[int, ...], ...]]:
        groups = shape[1] // positive_option(options, "group_size", ASYM_GROUP)
        return {"weight_s_rel": ((shape[0], groups),), "weight_s_channel": ((shape[0],),),
                "weight_codebook": ((CODEBOOK_SIZE,),)}


def nearest(values: Tensor, table: Tensor) -> Tensor:
    """The codes of the entries of a rising table (16,) that lie nearest; int64 of the values' shape."""
    return torch.bucketize(values.contiguous(), (table[1:] + table[:-1]) / 2)


def nearest_of_each(values: Tensor, levels: Tensor) -> Tensor:
    """values (N, groups, g), levels (N, groups, 16), rising -> codes (N, groups, g)."""
    return torch.searchsorted(((levels[..., 1:] + levels[..., :-1]) / 2).contiguous(), values.contiguous())


def decoded(table: Tensor, relative: Tensor) -> Tensor:
    """table (16,), relative (N, groups) -> what each code stands for in each group, (N, groups, 16)."""
    return (table * relative[..., None]).round().clamp(-INT8_MAX, INT8_MAX)


def fit_table(values: Tensor) -> Tensor:
    """values within -1..1 of any shape -> (16,), rising: each entry the mean of the values that it is nearest to."""
    sample = values.flatten()
    sample = sample[:: max(1, len(sample) // CODEBOOK_SAMPLE)].contiguous()
    table = torch.quantile(sample, torch.linspace(0, 1, CODEBOOK_SIZE, device=sample.device))
    for _ in range(CODEBOOK_ROUNDS):
        codes = nearest(sample, table)
        counts = torch.bincount(codes, minlength=CODEBOOK_SIZE)
        sums = torch.zeros_like(table).index_add_(0, codes, sample)
        table = torch.where(counts > 0, sums / counts.clamp(min=1), table)
    return table
