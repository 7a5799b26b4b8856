"""One PT-DiT block: global attention by proxy tokens, local in windows, then text and MLP as in PixArt.

Shapes: B batch, N image tokens window by window, W windows of n tokens, P proxy tokens, L text tokens, D width.
Source: PT-DiT (arXiv 2409.04005), section 3, and the order of the published inference code.
"""
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..model.attention import Attend, CrossAttention, Options
from ..model.block import ScaleShiftTable, modulate
from ..model.embedders import Mlp
from ..model.layers import Ops
from .config import PTDiTConfig
from .windows import TokenGrid, proxy_tokens, shift_windows


class Windows(NamedTuple):
    """The arrangement of an image's tokens: their grid, and the bias of attention in shifted windows, (W, 1, n, n)."""

    grid: TokenGrid
    bias: Tensor | None


def normalised(x: Tensor) -> Tensor:
    """LayerNorm without parameters."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


class WindowAttention(nn.Module):
    """Attention among the tokens it is given, with a bias or without."""

    def __init__(self, config: PTDiTConfig, ops: Ops, attend: Attend, **factory: Any) -> None:
        super().__init__()
        self.heads, self.attend = config.heads, attend
        self.qkv = ops.Linear(config.hidden, 3 * config.hidden, **factory)
        self.proj = ops.Linear(config.hidden, config.hidden, **factory)

    def forward(self, x: Tensor, bias: Tensor | None, options: Options) -> Tensor:
        """x (B, N, D), bias (B, 1, N, N) or None -> (B, N, D)."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)                                          # each (B, N, D)
        return self.proj(self.attend(q, k, v, self.heads, bias, options))               # (B, N, D)


class PTDiTBlock(nn.Module):
    """Proxy attention, visual cross-attention, windows, shifted windows, text cross-attention, MLP."""

    def __init__(self, config: PTDiTConfig, ops: Ops, attend: Attend, **factory: Any) -> None:
        super().__init__()
        width, device = config.hidden, factory.get("device")
        self.side, self.cell, self.shifted = config.window, config.proxy, config.shifted
        self.scale_shift_table = ScaleShiftTable(6, width, device)
        self.proxy_attn = WindowAttention(config, ops, attend, **factory)
        self.visual_attn = CrossAttention(config, ops, attend, **factory)
        self.visual_linear = ops.Linear(width, width, **factory)
        self.attn = WindowAttention(config, ops, attend, **factory)
        if config.shifted:
            self.shifted_scale_shift_table = ScaleShiftTable(3, width, device)
            self.shifted_attn = WindowAttention(config, ops, attend, **factory)
            self.shifted_linear = ops.Linear(width, width, **factory)
        self.cross_attn = CrossAttention(config, ops, attend, **factory)
        self.mlp = Mlp(width, 4 * width, width, ops, **factory)

    def forward(self, x: Tensor, text: Tensor, modulation: Tensor, windows: Windows, mask: Tensor | None = None,
                options: Options = None) -> Tensor:
        """x (B, N, D), text (B, L, D), modulation (B, 6, D), mask as CrossAttention takes it -> (B, N, D)."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.scale_shift_table(modulation)     # each (B, 1, D)
        x = x + self.visual_linear(self.far(x, windows, options))                       # (B, N, D)
        near = self.near(self.attn, modulate(x, shift_a, scale_a), None, options)       # (B, N, D)
        x = torch.addcmul(x, gate_a, near)                                              # (B, N, D)
        if self.shifted:
            x = x + self.shifted_linear(self.across(x, modulation, windows, options))   # (B, N, D)
        x = x + self.cross_attn(x, text, mask, options)                                 # (B, N, D)
        return torch.addcmul(x, gate_m, self.mlp(modulate(x, shift_m, scale_m)))        # (B, N, D)

    def far(self, x: Tensor, windows: Windows, options: Options) -> Tensor:
        """(B, N, D) -> (B, N, D): every token attends to the proxy tokens, which attended to one another."""
        proxy = proxy_tokens(x, windows.grid, self.side, self.cell)                          # (B, P, D)
        proxy = proxy + self.proxy_attn(normalised(proxy), None, options)               # (B, P, D)
        return self.visual_attn(normalised(x), normalised(proxy), None, options)        # (B, N, D)

    def near(self, attn: WindowAttention, x: Tensor, bias: Tensor | None, options: Options) -> Tensor:
        """(B, N, D) -> (B, N, D): attention in every window by itself; bias (B * W, 1, n, n) or None."""
        each = x.reshape(-1, self.side ** 2, x.shape[2])                                # (B * W, n, D)
        return attn(each, bias, options).view(x.shape)                                  # (B, N, D)

    def across(self, x: Tensor, modulation: Tensor, windows: Windows, options: Options) -> Tensor:
        """(B, N, D) -> (B, N, D): attention over the borders of windows, gated."""
        shift_s, scale_s, gate_s = self.shifted_scale_shift_table(modulation[:, :3])    # each (B, 1, D)
        moved = modulate(shift_windows(x, windows.grid, self.side), shift_s, scale_s)           # (B, N, D)
        bias = None if windows.bias is None else windows.bias.repeat(len(x), 1, 1, 1)   # (B * W, 1, n, n)
        update = self.near(self.shifted_attn, moved, bias, options)                     # (B, N, D)
        return gate_s * shift_windows(update, windows.grid, self.side, back=True)               # (B, N, D)
