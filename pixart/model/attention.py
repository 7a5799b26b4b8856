"""Self-attention over image tokens and cross-attention from image tokens to text.

Shapes: B batch, N image tokens, L text tokens, D width. Attention itself comes in as `attend`, so that a host can
bring its own kernels.
"""
from collections.abc import Callable, Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import KVCompression, PixArtConfig
from .layers import Ops

Options = Mapping[str, Any] | None
# q (B, N, D), k and v (B, M, D), heads, what is added to the scores (B, 1, 1, M) or None, options -> (B, N, D)
Attend = Callable[[Tensor, Tensor, Tensor, int, Tensor | None, Options], Tensor]


def score_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Mask (B, M) bool, True = keep, -> what is added to the scores of attention for it, (B, 1, 1, M).

    Computed once per pass: from a bool mask torch would compute it in every attention call. Finite, because some
    hosts' kernels give NaN for -inf; after the softmax both are exactly 0.
    """
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)                     # (B, M)
    return bias.masked_fill_(~mask, torch.finfo(dtype).min)[:, None, None, :]           # (B, 1, 1, M)


def sdpa(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None, options: Options) -> Tensor:
    """Attention with torch's own kernel; `options` is for hosts and has no effect here."""
    # Not with einops: its overhead exceeds the time that a GPU takes for a small image's attention.
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))         # (B, heads, N or M, D / heads)
    if bias is not None:
        bias = bias.to(q.dtype)         # differs under autocast only
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)


def matmul_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None, options: Options) -> Tensor:
    """The same attention as two matrix products, for training short sequences on a CPU.

    The fused kernel saves memory that small images do not need, and its backward pass takes several times as long
    there: a training step of PixArt-mini (64 tokens, batch 64, 2 cores) went from 1.0 s to 0.6 s.
    """
    q, k, v = (rearrange(t, "b n (h d) -> b h n d", h=heads) for t in (q, k, v))       # (B, heads, N or M, D / heads)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)                            # (B, heads, N, M)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    return rearrange(scores.softmax(-1).to(v.dtype) @ v, "b h n d -> b n (h d)")


def thin_out(tokens: Tensor, grid: tuple[int, int], mode: str, factor: int) -> Tensor:
    """(B, h * w, D) -> fewer tokens without weights: the modes "ave", "uniform" and "uniform_every".

    "ave" is nearest-neighbour in the official code despite its name, and floors odd grids; the other two are
    undefined on grids they do not divide.
    """
    h, w = grid
    if mode == "ave":
        return tokens.unflatten(1, grid)[:, :h - h % factor:factor, :w - w % factor:factor].flatten(1, 2)
    if mode == "uniform":
        if h % factor or w % factor:
            raise ValueError(f"key/value compression 'uniform' by {factor} needs token rows and columns divisible by "
                             f"{factor}; this image has {h} x {w}. Choose a size divisible by {16 * factor} pixels.")
        return tokens.unflatten(1, grid)[:, ::factor, ::factor].flatten(1, 2)
    if tokens.shape[1] % factor:
        raise ValueError(f"key/value compression 'uniform_every' by {factor} needs a number of tokens divisible by "
                         f"{factor}; this image has {h} x {w} = {h * w}. Choose another size.")
    return tokens[:, ::factor]


class SelfAttention(nn.Module):
    """Attention among image tokens, with Sigma's optional query/key norm and key/value compression."""

    def __init__(self, config: PixArtConfig, compression: KVCompression | None, ops: Ops, attend: Attend,
                 **factory: Any) -> None:
        super().__init__()
        width = config.hidden
        self.heads, self.attend, self.compression = config.heads, attend, compression
        self.qkv = ops.Linear(width, 3 * width, **factory)
        self.proj = ops.Linear(width, width, **factory)
        if config.qk_norm:
            self.q_norm = ops.LayerNorm(width, eps=1e-5, **factory)
            self.k_norm = ops.LayerNorm(width, eps=1e-5, **factory)
        self.qk_norm = config.qk_norm
        if compression is not None and compression.mode == "conv":
            self.sr = ops.Conv2d(width, width, kernel_size=compression.factor, stride=compression.factor,
                                 groups=width, **factory)
            self.norm = ops.LayerNorm(width, eps=1e-5, **factory)

    def forward(self, x: Tensor, grid: tuple[int, int], options: Options) -> Tensor:
        """x (B, N, D) on a grid of (h, w) tokens -> (B, N, D)."""
        q, k, v = self.split(x)                                                         # each (B, N, D)
        if self.compression is not None:
            k, v = (self.compress(t, grid, self.compression) for t in (k, v))           # (B, N / factor^2, D)
        return self.proj(self.attend(q, k, v, self.heads, None, options))               # (B, N, D)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, N, D) -> queries, keys and values (B, N, D), not compressed yet."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return (self.q_norm(q), self.k_norm(k), v) if self.qk_norm else (q, k, v)

    def compress(self, tokens: Tensor, grid: tuple[int, int], compression: KVCompression) -> Tensor:
        """(B, N, D) -> (B, about N / factor^2, D).

        One convolution and norm serve keys and values (PixArt-Sigma, section 3.2). ValueError where nothing is left.
        """
        if compression.mode in ("conv", "ave") and min(grid) < compression.factor:
            raise ValueError(f"key/value compression {compression.mode!r} by {compression.factor} leaves no token of "
                             f"{grid[0]} x {grid[1]}; choose sides of {16 * compression.factor} pixels or more")
        if compression.mode != "conv":
            return thin_out(tokens, grid, compression.mode, compression.factor)
        image = rearrange(tokens, "b (h w) d -> b d h w", h=grid[0])                  # (B, D, h, w)
        return self.norm(rearrange(self.sr(image), "b d h w -> b (h w) d"))           # (B, N / factor^2, D)


class CrossAttention(nn.Module):
    """Attention from image tokens to text tokens. The query is the residual stream as it is: no norm, no gate."""

    def __init__(self, config: PixArtConfig, ops: Ops, attend: Attend, **factory: Any) -> None:
        super().__init__()
        width = config.hidden
        self.heads, self.attend = config.heads, attend
        self.q_linear = ops.Linear(width, width, **factory)
        self.kv_linear = ops.Linear(width, 2 * width, **factory)
        self.proj = ops.Linear(width, width, **factory)

    def forward(self, x: Tensor, text: Tensor, mask: Tensor | None, options: Options) -> Tensor:
        """x (B, N, D), text (B, L, D) -> (B, N, D).

        mask: None, (B, L) bool with at least one True a row, or what `score_bias` made of that.
        """
        return self.proj(self.attended(self.q_linear(x), text, mask, options))          # (B, N, D)

    def attended(self, q: Tensor, text: Tensor, mask: Tensor | None, options: Options) -> Tensor:
        """Queries (B, N, D), text (B, L, D), mask as in `forward` -> the heads' output, before `proj`, (B, N, D)."""
        if mask is not None and mask.dtype == torch.bool:
            mask = score_bias(mask, q.dtype)
        k, v = self.kv_linear(text).chunk(2, dim=-1)                                    # each (B, L, D)
        return self.attend(q, k, v, self.heads, mask, options)                          # (B, N, D)
