"""Normalized attention guidance (NAG, arXiv 2505.21179): a negative prompt for models that work without guidance.

Few-step models have guidance built in, so there is no second prediction that a negative prompt could steer. NAG steers
inside cross-attention: the output for the prompt is extrapolated away from that for the negative prompt, limited in its
L1 norm, and blended with the original. It costs one more attention over few text tokens per block, not a second pass.

Shapes: B rows, N image tokens, L text tokens, C caption width, D width.
"""
import threading
from typing import cast

import torch
from torch import Tensor

from ..config import PixArtConfig
from .block import PixArtBlock
from .flexdit import NO_POLICIES
from .flexdit_config import FlexDiTConfig
from .policy import Lane, Pass, Policy, Run

NAG_SCALE, NAG_TAU, NAG_ALPHA = 5.0, 2.5, 0.5
LEAST_LENGTH = 1e-6


def away_from(positive: Tensor, negative: Tensor, scale: float, tau: float, alpha: float) -> Tensor:
    """positive and negative (B, N, D) -> (B, N, D), section 3 of the paper.

    z = scale positive - (scale - 1) negative, scaled to at most tau times the L1 norm of `positive`, token by token;
    then alpha z + (1 - alpha) positive. scale counts as in the published code: 1 is none (the paper's is one less).
    """
    moved = scale * positive - (scale - 1) * negative
    exact = torch.promote_types(positive.dtype, torch.float32)      # 16 bits cannot hold the sum
    lengths = [torch.linalg.vector_norm(each, 1, dim=-1, keepdim=True, dtype=exact)
               for each in (positive, moved)]                                           # each (B, N, 1)
    held = (tau * lengths[0] / lengths[1].clamp(min=LEAST_LENGTH)).clamp(max=1)
    return torch.lerp(positive, moved * held.to(moved.dtype), alpha)


class NAG(Policy):
    """Steers away from a negative prompt, given as features of the text encoder (1, L, C), in every block.

    scale: 1 for none. tau: limit of the norm relative to the original output, 1 or more. alpha: blending weight of the
    steered output, 0 to 1. start and end: fractions of the steps between which it applies. Rows of a negative prompt
    (with guidance) are left as they are. config: that of the models it steers. ValueError for a FlexDiT, for features
    of another text encoder and for values out of range.
    """

    def __init__(self, config: PixArtConfig, negative: Tensor, scale: float = NAG_SCALE, tau: float = NAG_TAU,
                 alpha: float = NAG_ALPHA, start: float = 0.0, end: float = 1.0) -> None:
        if isinstance(config, FlexDiTConfig):
            raise ValueError(NO_POLICIES)
        if negative.ndim != 3 or len(negative) != 1 or negative.shape[2] != config.caption_width:
            raise ValueError(f"the features of the negative prompt have shape {tuple(negative.shape)}; NAG takes those "
                             f"of one prompt, (1, tokens, {config.caption_width}). Use the text encoder that "
                             "belongs to this model.")
        if not (1 <= scale < float("inf") and 1 <= tau < float("inf") and 0 <= alpha <= 1):
            raise ValueError(f"NAG with scale {scale:g}, tau {tau:g}, alpha {alpha:g}; expected scale and tau of 1 or "
                             "more, alpha of 0 to 1")
        if not 0 <= start <= end <= 1:
            raise ValueError(f"NAG from {start} to {end}; expected 0 <= start <= end <= 1")
        self.negative, self.start, self.end = negative, start, end
        self.scale, self.tau, self.alpha = scale, tau, alpha
        self.local = threading.local()          # text of the pass that this thread runs, (1, L, D)

    def used(self, p: Pass) -> bool:
        """Whether this pass is steered."""
        if self.scale == 1 or self.alpha == 0:
            return False
        if p.step is None:
            return True
        first, last = (round(share * p.step.total) for share in (self.start, self.end))
        return first <= p.step.index < last

    def stack(self, p: Pass, go: Run) -> Tensor:
        if self.used(p):
            self.local.text = p.network.y_embedder(self.negative.to(p.x))               # (1, L, D)
        return go(p)

    def branch(self, index: int, name: str, p: Pass, go: Run) -> Tensor:
        if name != "cross_attn" or not self.used(p):
            return go(p)
        avoided = [p.step is not None and isinstance(lane := p.step.lanes[row], Lane) and lane.negative
                   for row in range(len(p.x))]
        if not any(avoided):
            return self.steered(index, p)
        result = p.x.new_empty(p.x.shape)
        for kind, answer in ((True, go), (False, lambda part: self.steered(index, part))):
            rows = [row for row, each in enumerate(avoided) if each is kind]
            if rows:
                result[rows] = answer(p.part(rows))
        return result

    def steered(self, index: int, p: Pass) -> Tensor:
        """Output (B, N, D) of the cross-attention of block `index`, steered away from the negative prompt."""
        cross = cast(PixArtBlock, p.network.blocks[index]).cross_attn
        q = cross.q_linear(p.x)                                                         # (B, N, D)
        positive = cross.attended(q, p.text, p.mask, p.options)                         # (B, N, D)
        negative = cross.attended(q, self.local.text.expand(len(q), -1, -1), None, p.options)
        return cross.proj(away_from(positive, negative, self.scale, self.tau, self.alpha))
