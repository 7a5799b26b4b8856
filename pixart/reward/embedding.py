"""Rewards of the CLIP type: an inner product of what the prompt says and what the image shows.

Reweighting follows LongAlign (Liu et al. 2024, section 4): the direction V that all prompts have in common says nothing
of a single one, and an image can please a scorer by it alone. The part of a prompt's embedding along V is scaled by w.
"""
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .protocol import WeightedSum, check_images


class EmbeddingReward(nn.Module):
    """scale * <c, v>; subclasses say what the embeddings c of prompts and v of images are."""

    name = "embedding"
    common: Tensor | None                           # V (D,); None: of the prompts of each call

    def __init__(self) -> None:
        super().__init__()
        self.relevance = 1.0                        # w: 1 for the ordinary score, 0 for the text-relevant part alone
        self.register_buffer("common", None, persistent=False)      # goes where the network goes

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings (B, D) of prompts, without gradient."""
        raise NotImplementedError

    def looks(self, images: Tensor) -> Tensor:
        """Embeddings (B, D) of images (B, 3, H, W) in 0..1, differentiable."""
        raise NotImplementedError

    def scale(self) -> float | Tensor:
        """What the inner product is multiplied with."""
        return 1.0

    def reweight(self, w: float, prompts: Sequence[str] | None = None) -> None:
        """From now on score <c - (1 - w) eta V, v> with eta = <c, V>.

        w: 0..1. prompts: what V is the mean of; None for the prompts of each call, as in training on large batches.
        """
        if not 0 <= w <= 1:
            raise ValueError(f"the weight of the text-irrelevant part is {w}; it must lie between 0 and 1")
        if prompts is not None and not prompts:
            raise ValueError("there are no prompts to find out what all prompts have in common; give some, or None")
        self.relevance = w
        self.common = None if prompts is None else common_direction(self.texts(prompts))

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        check_images(images, prompts)
        said = self.texts(prompts)
        if self.relevance != 1:
            common = common_direction(said) if self.common is None else self.common.to(said.dtype)
            said = reweighted(said, common, self.relevance)
        return self.scale() * (said * self.looks(images)).sum(-1)


def reweight_all(rewards: WeightedSum, w: float, prompts: Sequence[str] | None) -> None:
    """`EmbeddingReward.reweight` of all rewards of a sum; ValueError, before any changes, for one of another type."""
    for reward in rewards.rewards:
        if not isinstance(reward, EmbeddingReward):
            raise ValueError(f"the reward {reward.name} reads words and image together and cannot be reweighted; leave "
                             "relevance at 1, or that reward out")
    for reward in rewards.rewards:
        cast(EmbeddingReward, reward).reweight(w, prompts)


def common_direction(embeddings: Tensor) -> Tensor:
    """V (D,): the mean of embeddings (B, D), of length 1."""
    return F.normalize(embeddings.mean(0), dim=0)


def reweighted(embeddings: Tensor, common: Tensor, w: float) -> Tensor:
    """c - (1 - w) <c, V> V for embeddings c (B, D) and V (D,); not normalised again."""
    along = (embeddings @ common)[:, None] * common
    return embeddings - (1 - w) * along


def mean_of_segments(embeddings: Tensor, counts: Sequence[int]) -> Tensor:
    """Embeddings (sum of counts, D) of segments, prompt after prompt -> their means (B, D), as Denscore reads captions.

    The means are not normalised again.
    """
    return torch.stack([part.mean(0) for part in embeddings.split(list(counts))])
