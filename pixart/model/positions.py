"""The fixed sine-cosine position table of PixArt, at any grid size.

Shapes: h, w token rows and columns, N = h * w tokens in row-major order, D token width.
"""
from functools import lru_cache

import torch
from torch import Tensor


def axis_coordinates(count: int, base_size: int, scale: float) -> Tensor:
    """(count,) float32 coordinates 0 .. base_size / scale, whatever the number of tokens on this axis.

    The division order is the official one: it decides the last bit where count / base_size is not exact in binary.
    """
    return torch.arange(count, dtype=torch.float32) / (count / base_size) / scale


def axis_table(coordinates: Tensor, width: int) -> Tensor:
    """(n,) coordinates -> (n, width) float32: sines, then cosines, of width / 2 frequencies 10000^(-2k / width)."""
    k = torch.arange(width // 2, dtype=torch.float64)
    angles = coordinates.double()[:, None] * 10000.0 ** (-k / (width / 2))
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


@lru_cache(maxsize=8)
def position_table(h: int, w: int, width: int, base_size: int, scale: float,
                   device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    """(h * w, width) table for an h x w grid: first half encodes the column, second half the row.

    Each axis spans [0, base_size / scale) on its own, so other aspect ratios are stretched, not cropped.
    Computed in float64, stored as float32, cast last: in bf16 the coordinates themselves would be wrong.
    """
    with torch.inference_mode(False):     # a cached tensor must stay usable in training
        column = axis_table(axis_coordinates(w, base_size, scale), width // 2)
        row = axis_table(axis_coordinates(h, base_size, scale), width // 2)
        column, row = column[None].expand(h, w, -1), row[:, None].expand(h, w, -1)
        return torch.cat([column, row], dim=-1).flatten(0, 1).to(device=device, dtype=dtype)
