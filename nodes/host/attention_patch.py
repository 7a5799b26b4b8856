"""What nodes of the host attach to self-attention: perturbed and self-attention guidance."""
from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import Tensor

from ...pixart.model.block import PixArtBlock, modulate
from ...pixart.model.policy import Pass, Policy, Run
from ...pixart.model.transformer import PixArtTransformer

UNET_MIDDLE = ("middle", 0)


class AttentionPatch(Policy):
    """Runs what `patches_replace["attn1"]` of the host has for the middle of a U-Net, in the middle block.

    That is block 14 of 28, the one that diffusers takes as its example for perturbed attention in PixArt-Sigma. The
    replacement is given queries, keys and values (B, N, D) and its result takes the place of attention between them.
    """

    def __init__(self, model: PixArtTransformer, options: Mapping) -> None:
        hung = options.get("patches_replace", {}).get("attn1", {})
        self.model, self.options, self.index = model, options, model.config.depth // 2
        self.replacement: Callable[..., Tensor] | None = next(
            (patch for place, patch in hung.items() if place[:2] == UNET_MIDDLE), None)

    def __bool__(self) -> bool:
        return self.replacement is not None

    def branch(self, index: int, name: str, p: Pass, go: Run) -> Tensor:
        if name != "attn" or index != self.index or self.replacement is None:
            return go(p)
        block = cast(PixArtBlock, self.model.blocks[index])
        if block.attn.compression is not None:
            raise ValueError(f"block {index} of this model compresses keys and values, so attention guidance cannot "
                             "take its attention apart; leave that node out")
        shift, scale, *_ = block.scale_shift_table(p.modulation)                        # (B, 1, D)
        q, k, v = block.attn.split(modulate(p.x, shift, scale))                         # each (B, N, D)
        return block.attn.proj(self.replacement(q, k, v, self.extra_options(block)))             # (B, N, D)

    def extra_options(self, block: PixArtBlock) -> dict[str, Any]:
        """The options that a U-Net of the host passes to a replacement."""
        heads = self.model.config.heads
        return {**self.options, "block": UNET_MIDDLE, "block_index": 0, "n_heads": heads,
                "dim_head": self.model.config.hidden // heads, "attn_precision": None}
