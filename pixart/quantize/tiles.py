"""The order in which NVIDIA's matrix units read scales of blocks.

Scales (R, C) are cut in tiles of 128 x 4, padded with zeros; a tile is stored as 32 x 16, its row r in line r % 32
from column 4 * (r // 32) on. Source: cuBLAS documentation, "1D Block Scaling Factors Layout".
"""
import torch
from torch import Tensor
from torch.nn import functional as F

ROWS, COLUMNS = 128, 4


def tiled_shape(rows: int, columns: int) -> tuple[int, int]:
    """The shape of scales (rows, columns) in tiles."""
    return rows + -rows % ROWS, columns + -columns % COLUMNS


def to_tiles(scales: Tensor) -> Tensor:
    """(R, C) of any type of one byte -> the same, of shape `tiled_shape`."""
    rows, columns = scales.shape
    high, wide = tiled_shape(rows, columns)
    padded = F.pad(scales.view(torch.uint8), (0, wide - columns, 0, high - rows))
    tiles = padded.view(high // ROWS, 4, 32, wide // COLUMNS, COLUMNS)          # tile row, r // 32, r % 32, ...
    return tiles.permute(0, 3, 2, 1, 4).reshape(high, wide).view(scales.dtype)


def from_tiles(tiled: Tensor, rows: int, columns: int) -> Tensor:
    """What `to_tiles` was given, of shape (rows, columns)."""
    high, wide = tiled.shape
    tiles = tiled.view(torch.uint8).view(high // ROWS, wide // COLUMNS, 32, 4, COLUMNS)
    return tiles.permute(0, 3, 2, 1, 4).reshape(high, wide)[:rows, :columns].contiguous().view(tiled.dtype)
