"""Self-attention of the first blocks as the mean of their values: the part of FlexDiT that needs no training.

FlexDiT (arXiv 2412.06028) found that the first blocks attend to all tokens almost uniformly. So their attention is
taken as uniform: no queries, no keys, and the mean of the values at the cost of one token.
"""
from typing import cast

from torch import Tensor

from ..model.attention import SelfAttention
from ..model.block import PixArtBlock, modulate
from ..model.flexdit import FlexDiT
from ..model.policy import Pass, Policy, Run
from ..model.transformer import PixArtTransformer


class PooledValues(Policy):
    """For a plain PixArt model; its weights are used as they are when a pass runs. ValueError for too many blocks."""

    def __init__(self, model: PixArtTransformer, blocks: int = 2) -> None:
        if isinstance(model, FlexDiT):
            raise ValueError("this model is a FlexDiT, which pools in its first blocks already")
        if not 0 <= blocks <= model.config.depth:
            raise ValueError(f"{blocks} blocks are to pool; this model has {model.config.depth}")
        compressing = [index for index in range(blocks) if attention_of(model, index).compression is not None]
        if compressing:
            raise ValueError(f"block {compressing[0]} compresses keys and values, which pooling would bypass; pool "
                             f"the first {compressing[0]} blocks at most")
        self.model, self.blocks = model, blocks

    def branch(self, index: int, name: str, p: Pass, go: Run) -> Tensor:
        if name != "attn" or index >= self.blocks:
            return go(p)
        attn, table = attention_of(self.model, index), cast(PixArtBlock, self.model.blocks[index]).scale_shift_table
        shift, scale, *_ = table(p.modulation)                                          # (B, 1, D)
        mean = modulate(p.x, shift, scale).mean(1, keepdim=True)                        # (B, 1, D)
        _, _, value = attn.qkv(mean).chunk(3, dim=-1)                                   # (B, 1, D)
        return attn.proj(value)                                                         # (B, 1, D)


def attention_of(model: PixArtTransformer, block: int) -> SelfAttention:
    return cast(PixArtBlock, model.blocks[block]).attn
