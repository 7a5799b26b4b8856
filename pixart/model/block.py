"""One PixArt block, and the layer after the last one: both modulated by adaLN-single.

Shapes: B batch, N image tokens, L text tokens, D width.
"""
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import PixArtConfig
from .attention import Attend, CrossAttention, Options, SelfAttention
from .embedders import Mlp
from .layers import Ops

Rows = tuple[Tensor, ...]       # of the modulation: shift, scale and gate of "attn", then of "mlp", each (B, 1, D)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without parameters, then x * (1 + scale) + shift; shift and scale (B, 1, D)."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


class ScaleShiftTable(nn.Module):
    """Learned offsets (rows, D) of the shared modulation.

    A module of its own, because a host patches and moves weights leaf module by leaf module; a bare parameter on
    the block would be skipped silently. Stays float32: it is small and precision is free.
    """

    def __init__(self, rows: int, width: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, width, device=device, dtype=torch.float32) / width ** 0.5)

    def forward(self, modulation: Tensor) -> Rows:
        """modulation (B, rows, D) or (B, 1, D) -> rows tensors (B, 1, D) in its dtype."""
        weight = self.weight.to(device=modulation.device)                               # (rows, D)
        return (weight + modulation).to(modulation.dtype).chunk(weight.shape[0], dim=1)


def accept_reference_table_name(module: nn.Module, state_dict: dict, prefix: str, *_: object) -> None:
    """Load hook: published files call the table `scale_shift_table`, without `.weight`."""
    name = prefix + "scale_shift_table"
    if name in state_dict:
        state_dict[name + ".weight"] = state_dict.pop(name)


class PixArtBlock(nn.Module):
    """Self-attention, cross-attention to text, MLP (PixArt-alpha section 2.3)."""

    branches = ("attn", "cross_attn", "mlp")        # in the order they run

    def __init__(self, config: PixArtConfig, index: int, ops: Ops, attend: Attend, **factory: Any) -> None:
        super().__init__()
        width, compression = config.hidden, config.kv_compression
        if compression is not None and index not in compression.layers:
            compression = None
        self.scale_shift_table = ScaleShiftTable(6, width, factory.get("device"))
        self.attn = SelfAttention(config, compression, ops, attend, **factory)
        self.cross_attn = CrossAttention(config, ops, attend, **factory)
        self.mlp = Mlp(width, 4 * width, width, ops, **factory)
        self.register_load_state_dict_pre_hook(accept_reference_table_name)

    def forward(self, x: Tensor, text: Tensor, modulation: Tensor, grid: tuple[int, int],
                mask: Tensor | None = None, options: Options = None, only: str | None = None) -> Tensor:
        """x (B, N, D), text (B, L, D), modulation (B, 6, D), mask as CrossAttention takes it -> (B, N, D).

        With `only`, the output of that branch alone, before its gate. It is the same call, so that whatever compiles or
        recomputes a block does the same for a single branch.
        """
        rows = self.scale_shift_table(modulation)                                       # six of (B, 1, D)
        if only is not None:
            return self.branch(only, x, rows, text, grid, mask, options)                # (B, N, D)
        for name in self.branches:
            update = self.branch(name, x, rows, text, grid, mask, options)              # (B, N, D)
            x = self.join(name, x, update, rows)                                        # (B, N, D)
        return x

    def branch(self, name: str, x: Tensor, rows: Rows, text: Tensor, grid: tuple[int, int], mask: Tensor | None,
               options: Options) -> Tensor:
        """(B, N, D) -> (B, N, D): one of `branches`, given the rows of the modulation."""
        shift_a, scale_a, _, shift_m, scale_m, _ = rows
        if name == "attn":
            return self.attn(modulate(x, shift_a, scale_a), grid, options)
        if name == "cross_attn":
            return self.cross_attn(x, text, mask, options)
        return self.mlp(modulate(x, shift_m, scale_m))

    def join(self, name: str, x: Tensor, update: Tensor, rows: Rows) -> Tensor:
        """x + gate * update, (B, N, D); cross-attention has no gate."""
        if name == "cross_attn":
            return x + update
        return torch.addcmul(x, rows[2 if name == "attn" else 5], update)


class FinalLayer(nn.Module):
    """Tokens -> patches of output channels. Its modulation is the time embedding before `t_block`."""

    def __init__(self, config: PixArtConfig, ops: Ops, **factory: Any) -> None:
        super().__init__()
        self.scale_shift_table = ScaleShiftTable(2, config.hidden, factory.get("device"))
        self.linear = ops.Linear(config.hidden, config.patch ** 2 * config.out_channels, **factory)
        self.register_load_state_dict_pre_hook(accept_reference_table_name)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x (B, N, D), time (B, D) -> (B, N, patch * patch * out channels), channel fastest."""
        shift, scale = self.scale_shift_table(time[:, None])                            # each (B, 1, D)
        return self.linear(modulate(x, shift, scale))                                   # (B, N, patch^2 * out)
