"""Windows of tokens, windows shifted by half of one, and the proxy tokens that stand for parts of them.

Shapes: B batch, W windows, n tokens in one, N = W * n tokens, P proxy tokens, D width; grid (h, w) in tokens, row by
row, both multiples of the window's side. Source: PT-DiT (arXiv 2409.04005), section 3; Swin Transformer (arXiv
2103.14030), section 3.2, for the shift and its mask.
"""
import torch
from einops import rearrange
from torch import Tensor

TokenGrid = tuple[int, int]


def to_windows(x: Tensor, grid: TokenGrid, side: int) -> Tensor:
    """(B, N, D) row by row -> (B, N, D) window by window, each of side x side tokens."""
    return rearrange(x, "b (i y j z) d -> b (i j y z) d", i=grid[0] // side, y=side, z=side)


def from_windows(x: Tensor, grid: TokenGrid, side: int) -> Tensor:
    """(B, N, D) window by window -> row by row: the inverse of `to_windows`."""
    return rearrange(x, "b (i j y z) d -> b (i y j z) d", i=grid[0] // side, y=side, z=side)


def shift_windows(x: Tensor, grid: TokenGrid, side: int, back: bool = False) -> Tensor:
    """(B, N, D) in windows -> the same in windows that start half a side further down and to the right.

    What leaves the grid wraps around to the other side; `region_bias` keeps it apart. back: the inverse.
    """
    half = side // 2 if back else -(side // 2)
    rows = from_windows(x, grid, side).unflatten(1, grid)                               # (B, h, w, D)
    return to_windows(rows.roll((half, half), (1, 2)).flatten(1, 2), grid, side)        # (B, N, D)


def axis_regions(count: int, side: int, device: torch.device | str = "cpu") -> Tensor:
    """(count,) int64: to which contiguous region of an axis each token of a shifted grid belongs."""
    places = torch.arange(count, device=device)
    return (places >= count - side).long() + (places >= count - side // 2).long()


def region_mask(grid: TokenGrid, side: int, device: torch.device | str = "cpu") -> Tensor:
    """(W, n, n) bool: True where two tokens of a shifted window were neighbours before the shift too."""
    rows, columns = (axis_regions(count, side, device) for count in grid)
    label = 3 * rows[:, None] + columns                                                 # (h, w)
    label = to_windows(label.view(1, -1, 1), grid, side).view(-1, side * side)          # (W, n)
    return label[:, :, None] == label[:, None, :]


def region_bias(grid: TokenGrid, side: int, like: Tensor) -> Tensor:
    """`region_mask` as an additive bias of the scores, (W, 1, n, n), on the device and in the data type of `like`.

    Finite, because some kernels of hosts give NaN for -inf; after the softmax both are exactly 0.
    """
    mask = region_mask(grid, side, like.device)         # made there: every pass would wait for a copy
    bias = torch.zeros(mask.shape, dtype=like.dtype, device=like.device)
    return bias.masked_fill_(~mask, torch.finfo(like.dtype).min)[:, None]


def proxy_tokens(x: Tensor, grid: TokenGrid, side: int, cell: int) -> Tensor:
    """(B, N, D) in windows -> (B, P, D): the mean of every cell x cell square of tokens.

    The published code takes every k-th token of a window together where a cell is smaller than it (k cells on a side);
    here a cell is one square, as the paper has it. In its published model a cell is a whole window, where both agree.
    """
    windows = (grid[0] // side) * (grid[1] // side)
    cells = rearrange(x, "b (p i y j z) d -> b (p i j) (y z) d", p=windows, i=side // cell, y=cell, z=cell)
    return cells.mean(dim=2)                                                            # (B, P, D)
