"""FlexDiT (arXiv 2412.06028) for PixArt: pooling blocks, groups that work on sparse tokens, dense blocks.

In a group, tokens are averaged to a coarser grid; a merge block attends from these sparse tokens to all tokens; the
sparse blocks are PixArt's own; a recover block copies the sparse tokens back to the full grid, adds them to the tokens
that entered the group, each through a linear layer, and attends from there to the sparse tokens. PixArt's
cross-attention to text and its MLP stay where they were in every block; where the authors put them was not published.

Shapes: B rows, N tokens on a grid, M sparse tokens on a coarser one, L text tokens, D width.
"""
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..config import PixArtConfig
from .attention import Attend, CrossAttention, Options
from .block import PixArtBlock, ScaleShiftTable, accept_reference_table_name, modulate
from .embedders import Mlp
from .flexdit_config import FlexDiTConfig, Grid
from .layers import Ops
from .policy import Pass, Policy
from .transformer import PixArtTransformer

NO_CONTROL = ("a FlexDiT cannot follow a ControlNet: most of its blocks see fewer tokens than a ControlNet steers; use "
              "the PixArt model it was made from")
NO_POLICIES = ("a FlexDiT takes no cache, feedback or block patch: its number of tokens changes from block to block "
               "and step to step; leave it out, or use the PixArt model it was made from")


def average_pool(x: Tensor, grid: Grid, sparse: Grid) -> Tensor:
    """(B, N, D) on `grid` -> (B, M, D) on `sparse`, each the mean of the tokens it covers."""
    image = rearrange(x, "b (h w) d -> b d h w", h=grid[0])                           # (B, D, h, w)
    return rearrange(F.adaptive_avg_pool2d(image, sparse), "b d h w -> b (h w) d").contiguous()   # (B, M, D)


def copy_up(x: Tensor, sparse: Grid, grid: Grid) -> Tensor:
    """(B, M, D) on `sparse` -> (B, N, D) on `grid`, by nearest-neighbour upsampling."""
    image = rearrange(x, "b (h w) d -> b d h w", h=sparse[0])                         # (B, D, h', w')
    return rearrange(F.interpolate(image, grid), "b d h w -> b (h w) d").contiguous()      # (B, N, D)


class PooledAttention(nn.Module):
    """Self-attention that weighs all tokens alike: the mean of the values, without queries and keys."""

    def __init__(self, config: PixArtConfig, ops: Ops, **factory: Any) -> None:
        super().__init__()
        self.v = ops.Linear(config.hidden, config.hidden, **factory)
        self.proj = ops.Linear(config.hidden, config.hidden, **factory)

    def forward(self, x: Tensor, grid: Grid, options: Options) -> Tensor:
        """x (B, N, D) -> (B, 1, D), the same for all tokens."""
        mean = x.mean(1, keepdim=True)      # before the linear value projection: the same mean, for one token
        return self.proj(self.v(mean))                                                  # (B, 1, D)


class PoolingBlock(PixArtBlock):
    """A PixArt block with pooled self-attention."""

    def __init__(self, config: PixArtConfig, index: int, ops: Ops, attend: Attend, **factory: Any) -> None:
        super().__init__(config, index, ops, attend, **factory)
        self.add_module("attn", PooledAttention(config, ops, **factory))


class ExchangeAttention(nn.Module):
    """Attention from some tokens to others: self-attention's weights, with queries apart from keys and values."""

    def __init__(self, config: PixArtConfig, ops: Ops, attend: Attend, **factory: Any) -> None:
        super().__init__()
        width = config.hidden
        self.heads, self.attend, self.qk_norm = config.heads, attend, config.qk_norm
        self.q = ops.Linear(width, width, **factory)
        self.kv = ops.Linear(width, 2 * width, **factory)
        self.proj = ops.Linear(width, width, **factory)
        if config.qk_norm:
            self.q_norm = ops.LayerNorm(width, eps=1e-5, **factory)
            self.k_norm = ops.LayerNorm(width, eps=1e-5, **factory)

    def forward(self, x: Tensor, source: Tensor, options: Options) -> Tensor:
        """Queries from x (B, M, D), keys and values from source (B, K, D) -> (B, M, D)."""
        q = self.q(x)                                                                   # (B, M, D)
        k, v = self.kv(source).chunk(2, dim=-1)                                         # each (B, K, D)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        return self.proj(self.attend(q, k, v, self.heads, None, options))               # (B, M, D)


class ExchangeBlock(nn.Module):
    """The layers of a PixArt block, with attention from some tokens to others, both under the same modulation."""

    def __init__(self, config: PixArtConfig, ops: Ops, attend: Attend, **factory: Any) -> None:
        super().__init__()
        width = config.hidden
        self.scale_shift_table = ScaleShiftTable(6, width, factory.get("device"))
        self.attn = ExchangeAttention(config, ops, attend, **factory)
        self.cross_attn = CrossAttention(config, ops, attend, **factory)
        self.mlp = Mlp(width, 4 * width, width, ops, **factory)
        self.register_load_state_dict_pre_hook(accept_reference_table_name)

    def exchange(self, x: Tensor, source: Tensor, text: Tensor, modulation: Tensor, mask: Tensor | None,
                 options: Options) -> Tensor:
        """x (B, M, D), source (B, K, D), text (B, L, D), modulation (B, 6, D), mask as CrossAttention takes it."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.scale_shift_table(modulation)     # (B, 1, D)
        update = self.attn(modulate(x, shift_a, scale_a), modulate(source, shift_a, scale_a), options)
        x = torch.addcmul(x, gate_a, update)                                            # (B, M, D)
        x = x + self.cross_attn(x, text, mask, options)                                 # (B, M, D)
        return torch.addcmul(x, gate_m, self.mlp(modulate(x, shift_m, scale_m)))        # (B, M, D)


class MergeBlock(ExchangeBlock):
    """Sparse tokens attend to all tokens."""

    def forward(self, x: Tensor, text: Tensor, modulation: Tensor, grid: Grid, sparse: Grid,
                mask: Tensor | None = None, options: Options = None) -> Tensor:
        """x (B, N, D) on `grid` -> (B, M, D) on `sparse`."""
        return self.exchange(average_pool(x, grid, sparse), x, text, modulation, mask, options)


class RecoverBlock(ExchangeBlock):
    """From sparse tokens back to all: both are mixed, then all tokens attend to the sparse ones.

    from_sparse and from_dense are the paper's W1 and W2, which start as zero and identity.
    """

    def __init__(self, config: PixArtConfig, ops: Ops, attend: Attend, **factory: Any) -> None:
        super().__init__(config, ops, attend, **factory)
        self.from_sparse = ops.Linear(config.hidden, config.hidden, **factory)
        self.from_dense = ops.Linear(config.hidden, config.hidden, **factory)

    def forward(self, x: Tensor, found: Tensor, text: Tensor, modulation: Tensor, grid: Grid, sparse: Grid,
                mask: Tensor | None = None, options: Options = None) -> Tensor:
        """x (B, N, D) on `grid`, found (B, M, D) on `sparse` -> (B, N, D)."""
        return self.exchange(self.mix(x, found, grid, sparse), found, text, modulation, mask, options)

    def mix(self, x: Tensor, found: Tensor, grid: Grid, sparse: Grid) -> Tensor:
        """W1 U + W2 X (B, N, D), U the sparse tokens copied up. W1 comes before copying, on fewer tokens."""
        return copy_up(self.from_sparse(found), sparse, grid) + self.from_dense(x)      # (B, N, D)


class FlexDiT(PixArtTransformer):
    """PixArt in the segments of its configuration. All arguments as for PixArtTransformer.

    Rows of a batch may have different timesteps, and so different numbers of sparse tokens; rows with equal numbers run
    together, one group after the other. Control and policies are refused: both need all tokens in every block.
    """

    config: FlexDiTConfig

    def make_block(self, index: int, ops: Ops, attend: Attend, **factory: Any) -> Any:
        config, role = self.config, self.config.segments.roles[index]
        if role in ("merge", "recover"):
            return {"merge": MergeBlock, "recover": RecoverBlock}[role](config, ops, attend, **factory)
        return (PoolingBlock if role == "pooling" else PixArtBlock)(config, index, ops, attend, **factory)

    def run_stack(self, p: Pass, policies: Sequence[Policy]) -> Tensor:
        """(B, N, D) through all blocks. ValueError for control and policies."""
        if p.control is not None:
            raise ValueError(NO_CONTROL)
        if policies:
            raise ValueError(NO_POLICIES)
        places: dict[Grid, list[int]] = {}
        for row, sparse in enumerate(self.sparse_grids(p)):
            places.setdefault(sparse, []).append(row)
        if len(places) == 1:
            return self.run_segments(p, next(iter(places)))                             # (B, N, D)
        done = torch.cat([self.run_segments(p.part(rows), sparse) for sparse, rows in places.items()])
        order = torch.tensor([row for rows in places.values() for row in rows]).argsort()
        return done[order.to(done.device)]                                              # (B, N, D)

    def sparse_grids(self, p: Pass) -> list[Grid]:
        """The sparse grid of each row. In a sampling the step has the timestep; else it is read from the device."""
        if p.step is not None:
            return [self.config.density.grid(p.grid, p.step.timestep)] * len(p.x)
        if p.timestep is None:
            raise ValueError("a FlexDiT chooses by the timesteps on how many tokens it computes; this pass has none")
        return [self.config.density.grid(p.grid, t) for t in p.timestep.tolist()]

    def run_segments(self, p: Pass, sparse: Grid) -> Tensor:
        """All blocks, for rows that share a grid of sparse tokens; (B, N, D)."""
        few = p             # the pass of the sparse tokens
        for role, block in zip(self.config.segments.roles, cast(Sequence[Any], self.blocks)):
            shared = (p.text, p.modulation, p.grid, sparse, p.mask, p.options)
            if role == "merge":
                few = replace(p, x=self.exchanged(block, p.x, *shared), grid=sparse)        # (B, M, D)
            elif role == "sparse":
                few = few.with_x(self.compute(block, few))                                  # (B, M, D)
            elif role == "recover":
                p = p.with_x(self.exchanged(block, p.x, few.x, *shared))                    # (B, N, D)
            else:
                p = p.with_x(self.compute(block, p))                                        # (B, N, D)
        return p.x

    def exchanged(self, block: MergeBlock | RecoverBlock, *given: Any) -> Tensor:
        """block(*given), recomputed in the backward pass with `recompute`."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, *given, use_reentrant=False)
        return block(*given)


def transformer_class(config: PixArtConfig) -> type[PixArtTransformer]:
    """The class of network that a configuration describes."""
    return FlexDiT if isinstance(config, FlexDiTConfig) else PixArtTransformer
