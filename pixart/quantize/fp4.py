"""FP4: floating-point numbers of 4 bits in groups of up to 128 columns, each with its largest magnitude as scale.

Which split of the bits serves a layer best depends on what follows it: FP4DiT (arXiv 2503.15465) takes E3M0 for the
first linear of the MLP, before GELU, and for all others E2M1 in PixArt-alpha, E1M2 in PixArt-Sigma. No host has kernels
for it: it is dequantised when it is loaded, or layer by layer as it runs.
"""
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .format import Format, FormatOptions, Tensors, positive_option
from .low_rank import low_rank_branch
from .minifloat import MiniFloat
from .nibbles import join_nibbles, split_nibbles

FP4_VERSION = 1
FP4_GROUP = 128             # most columns that share a scale
LEAST_SCALE = 1e-4
FLOAT, VERSIONED, GROUPED, RANK = "float", "version", "group_size", "rank"
MINI_FLOATS = {each.name: each for each in (MiniFloat(3, 0), MiniFloat(2, 1), MiniFloat(1, 2))}
LOW_RANK_UP, LOW_RANK_DOWN = "low_rank_up", "low_rank_down"


@dataclass(frozen=True)
class Grouped:
    """A weight (N, K) as groups (N, K / g, g): sign bits, magnitudes within 0 .. largest, scales (N, K / g) float16."""

    kind: MiniFloat
    negative: Tensor
    magnitudes: Tensor
    scale: Tensor

    @property
    def unit(self) -> Tensor:
        """What a magnitude is multiplied by, (N, K / g, 1) float32."""
        return self.scale.float()[..., None] / self.kind.largest

    def packed(self, codes: Tensor) -> dict[str, Tensor]:
        """codes of magnitudes (N, K / g, g) -> the tensors of the layer."""
        signed = codes.to(torch.uint8) | (self.negative.to(torch.uint8) << 3)
        return {"weight": join_nibbles(signed.flatten(1)), "weight_scale": self.scale}


def grouped(weight: Tensor, options: FormatOptions) -> Grouped:
    """weight (N, K) float32 -> its groups, ready to be rounded."""
    kind = MINI_FLOATS[str(options[FLOAT])]
    groups = weight.unflatten(1, (-1, positive_option(options, GROUPED, 0)))
    scale = groups.abs().amax(2).clamp(min=LEAST_SCALE).half()
    magnitudes = groups.abs() / scale.float()[..., None] * kind.largest
    return Grouped(kind, groups.signbit(), magnitudes.clamp(max=kind.largest), scale)


class FP4(Format):
    """weight uint8 (N, K / 2), even columns in the low bits, sign in the highest bit of a code; weight_scale float16
    (N, K / g); with a rank r also low_rank_up (N, r) and low_rank_down (r, K), float16, whose product is added."""

    name = "pixart_fp4"
    storage = torch.uint8
    scales: ClassVar = {"weight_scale": (torch.float16,)}
    extras: ClassVar = {LOW_RANK_UP: (torch.float16,), LOW_RANK_DOWN: (torch.float16,)}
    multiple = (1, 16)
    columns_per_value = 2
    runs_in_host = False

    def options_for(self, shape: tuple[int, int]) -> FormatOptions:
        return {VERSIONED: FP4_VERSION, FLOAT: "e2m1", GROUPED: largest_fp4_group(shape[1])}

    def options_problem(self, options: FormatOptions, shape: tuple[int, int]) -> str:
        version, group, rank = (positive_option(options, name, 0) for name in (VERSIONED, GROUPED, RANK))
        if version != FP4_VERSION:
            return (f"version is {version or 'no number'} and this program reads {FP4_VERSION}; a newer version of the "
                    "extension may have made it")
        if str(options.get(FLOAT)) not in MINI_FLOATS:
            return f"float is {str(options.get(FLOAT))[:20]}, not one of {', '.join(MINI_FLOATS)}"
        if not group or group % 2 or shape[1] % group:
            return f"group_size is {group or 'no number'}, not an even number that divides its {shape[1]} columns"
        if rank > min(shape) or (RANK in options and not rank):
            return f"rank is {options[RANK]}, not a number of 1 to {min(shape)}"
        return ""

    def problem(self, tensors: Tensors, options: FormatOptions) -> str:
        if (wrong := super().problem(tensors, options)):
            return wrong
        lacking = [name for name in (LOW_RANK_UP, LOW_RANK_DOWN) if (name in tensors) != (RANK in options)]
        return f"{lacking[0]} is {'missing' if RANK in options else 'there without a rank'}" if lacking else ""

    def quantize(self, weight: Tensor, options: FormatOptions) -> dict[str, Tensor]:
        branch = self.branch(weight, options)
        groups = grouped(rest_of(weight, branch), options)
        return {**groups.packed(groups.kind.nearest(groups.magnitudes)), **branch}

    def branch(self, weight: Tensor, options: FormatOptions) -> dict[str, Tensor]:
        """The tensors of the low-rank branch; none without a rank."""
        if RANK not in options:
            return {}

        def rounded(rest: Tensor) -> Tensor:
            groups = grouped(rest, options)
            return self.rest(groups.packed(groups.kind.nearest(groups.magnitudes)), options)
        up, down = low_rank_branch(weight, positive_option(options, RANK, 0), rounded)
        return {LOW_RANK_UP: up.contiguous(), LOW_RANK_DOWN: down.contiguous()}

    def rest(self, tensors: Tensors, options: FormatOptions) -> Tensor:
        """The rounded part of the weight, (N, K) float32."""
        codes, scale = split_nibbles(tensors["weight"]).long(), tensors["weight_scale"].float()
        kind = MINI_FLOATS[str(options[FLOAT])]
        values = (kind.signed_values(codes.device) / kind.largest)[codes].unflatten(1, (scale.shape[1], -1))
        return (values * scale[..., None]).flatten(1)

    def dequantize(self, tensors: Tensors, options: FormatOptions) -> Tensor:
        rest = self.rest(tensors, options)
        if LOW_RANK_UP not in tensors:
            return rest
        return rest + tensors[LOW_RANK_UP].float() @ tensors[LOW_RANK_DOWN].float()

    def scale_shapes(self, shape: tuple[int, int], options: FormatOptions) -> dict[str, tuple[tuple[int, ...], ...]]:
        (rows, columns), rank = shape, positive_option(options, RANK, 0)
        return {"weight_scale": ((rows, columns // positive_option(options, GROUPED, 1)),),
                LOW_RANK_UP: ((rows, rank),),
                LOW_RANK_DOWN: ((rank, columns),)}


def rest_of(weight: Tensor, branch: Tensors) -> Tensor:
    """What the low-rank branch leaves of a weight (N, K)."""
    return weight - branch[LOW_RANK_UP].float() @ branch[LOW_RANK_DOWN].float() if branch else weight


def largest_fp4_group(columns: int) -> int:
    """The largest power of two that divides the columns, at most 128: 128 in every released PixArt."""
    return min(FP4_GROUP, columns & -columns)
