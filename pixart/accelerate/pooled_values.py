"""Self-attention of the first blocks as the mean of their values: the part of FlexDiT that needs no training.

FlexDiT (arXiv 2412.06028) found that the first blocks attend to all tokens almost uniformly. So their attention is
taken as uniform: no queries, no keys, and the mean of the values at the cost of one token.
"""
from typing import cast

from torch import Tensor

from ..config import PixArtConfig
from ..model.block import PixArtBlock, modulate
from ..model.flexdit_config import FlexDiTConfig
from ..model.policy import Pass, Policy, Run


class PooledValues(Policy):
    """In the first `blocks` of plain PixArt models with this config.

    ValueError for a FlexDiT, for too many blocks, and for blocks that compress keys and values.
    """

    def __init__(self, config: PixArtConfig, blocks: int = 2) -> None:
        if isinstance(config, FlexDiTConfig):
            raise ValueError("this model is a FlexDiT, which pools in its first blocks already")
        if not 0 <= blocks <= config.depth:
            raise ValueError(f"{blocks} blocks are to pool; this model has {config.depth}")
        compressing = min(config.kv_compression.layers, default=blocks) if config.kv_compression else blocks
        if compressing < blocks:
            raise ValueError(f"block {compressing} compresses keys and values, which pooling would bypass; pool "
                             f"the first {compressing} blocks at most")
        self.blocks = blocks

    def branch(self, index: int, name: str, p: Pass, go: Run) -> Tensor:
        if name != "attn" or index >= self.blocks:
            return go(p)
        block = cast(PixArtBlock, p.network.blocks[index])
        shift, scale, *_ = block.scale_shift_table(p.modulation)                        # (B, 1, D)
        mean = modulate(p.x, shift, scale).mean(1, keepdim=True)                        # (B, 1, D)
        _, _, value = block.attn.qkv(mean).chunk(3, dim=-1)                             # (B, 1, D)
        return block.attn.proj(value)                                                   # (B, 1, D)
