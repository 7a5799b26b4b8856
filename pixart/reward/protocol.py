"""What a reward is: images and prompts in, one differentiable score an image out; and weighted sums of rewards."""
import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn


class Reward(Protocol):
    """A score to be raised. All rewards here are `nn.Module`s whose weights take no gradient."""

    name: str

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """images (B, 3, H, W) in 0..1 and a prompt each -> scores (B,) float32, differentiable in the images."""


class WeightedSum(nn.Module):
    """The sum of rewards, each with its weight; a reward itself."""

    name = "sum"

    def __init__(self, parts: Sequence[tuple[nn.Module, float]]) -> None:
        """parts: rewards with different names, and finite weights. Raises ValueError for anything else."""
        super().__init__()
        names = [str(reward.name) for reward, _ in parts]
        if not parts:
            raise ValueError("there is no reward; give at least one")
        if len(set(names)) < len(names):
            raise ValueError(f"the rewards are {', '.join(names)}; each may be there only once")
        wrong = next((name for name, (_, weight) in zip(names, parts) if not math.isfinite(weight)), None)
        if wrong is not None:
            raise ValueError(f"the weight of the reward {wrong} is not a finite number; give one such as 1.0")
        self.rewards = nn.ModuleList(reward for reward, _ in parts)
        self.weights = dict(zip(names, (float(weight) for _, weight in parts)))

    def scores(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The unweighted score (B,) of every reward, by its name."""
        check_images(images, prompts)
        return {name: reward(images, prompts) for name, reward in zip(self.weights, self.rewards)}

    def total(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Weighted sum (B,) of what `scores` gave."""
        return torch.stack([self.weights[name] * score for name, score in scores.items()]).sum(0)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.total(self.scores(images, prompts))


def check_images(images: Tensor, prompts: Sequence[str]) -> None:
    """Raises ValueError unless these are images (B, 3, H, W) with a prompt each."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images have shape {tuple(images.shape)}; a reward reads (B, 3, H, W) in 0..1")
    if len(images) != len(prompts):
        raise ValueError(f"{len(images)} images and {len(prompts)} prompts; there must be one each")
