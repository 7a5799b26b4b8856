"""The fixed sine-cosine position table of PixArt, at any grid size.

Shapes: h, w token rows and columns, N = h * w tokens in row-major order, D token width.
"""
from typing import Any

import torch
from torch import Tensor, nn

Size = tuple[int, int, torch.device, torch.dtype]       # rows and columns of tokens


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


class PositionTables:
    """The tables of one model, for its most recent sizes, devices and data types.

    They are freed with the model and left out of its copies. torch.compile takes a table as an input of the graph, so
    that a graph neither holds it nor computes it anew in every pass.
    """

    AT_MOST = 4         # one of 1024 px takes 9 MB in bf16

    def __init__(self, width: int, base_size: int, scale: float) -> None:
        self.width, self.base_size, self.scale = width, base_size, scale
        self.kept: dict[Size, Tensor] = {}

    def like(self, latent: Tensor, grid: tuple[int, int]) -> Tensor:
        """(h * w, width) on the latent's device, in its data type."""
        h, w = grid
        if type(latent) not in (Tensor, nn.Parameter):      # a fake tensor: none made from it may outlive its mode
            return self.compute((h, w, latent.device, latent.dtype))
        # To torch.compile, h and w may be symbols, but the length of a range is a plain number.
        size = (len(range(h)), len(range(w)), latent.device, latent.dtype)
        self.prepare(size)
        return self.kept[size]

    def prepare(self, size: Size) -> None:
        """Have a table ready; torch.compile runs this while it traces and leaves it out of the graph."""
        if size not in self.kept:
            while len(self.kept) >= self.AT_MOST:
                del self.kept[next(iter(self.kept))]
            self.kept[size] = self.compute(size)

    def compute(self, size: Size) -> Tensor:
        h, w, device, dtype = size
        return position_table(h, w, self.width, self.base_size, self.scale, device, dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "kept": {}}


# What torch.compiler.assume_constant_result does, without importing the compiler, which takes seconds.
PositionTables.prepare._dynamo_marked_constant = True  # type: ignore[attr-defined]
