"""Noise without gradients: the best of many, and the best of ever new neighbours of the best.

These are what gradients have to beat at equal cost, where a backward pass counts as two forward ones.
"""
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .optimise import Draw, Iteration, NoiseRecipe, OptimisedNoise
from .protocol import WeightedSum

Propose = Callable[[Tensor], Tensor]        # best noise so far -> noise to try, both (B, C, h, w)


def forwards_of(recipe: NoiseRecipe) -> int:
    """Forward passes that cost as much as an optimisation: a pass an iteration, and two for each gradient."""
    return recipe.iterations + 2 * (recipe.iterations - 1)


@torch.no_grad()
def search_noise(draw: Draw, reward: WeightedSum, prompts: Sequence[str], noise: Tensor, tries: int,
                 propose: Propose) -> OptimisedNoise:
    """The best of `noise` and `tries` - 1 proposals, row by row. Raises ValueError for no tries."""
    if tries < 1:
        raise ValueError(f"{tries} tries asked for; at least 1 is needed")
    best, history, pictures, kept = noise.float().clone(), [], torch.empty(0), torch.full((len(noise),), -math.inf)
    for number in range(1, tries + 1):
        tried = best if number == 1 else propose(best)
        shown = draw(tried)
        scores = reward.scores(shown, prompts)
        total = reward.total(scores).cpu()
        better = total > kept                               # never for what is not a number
        pictures = torch.where(better.view(-1, 1, 1, 1), shown.cpu(), pictures if len(pictures) else shown.cpu())
        best = torch.where(better.view(-1, 1, 1, 1).to(best.device), tried, best)
        kept = torch.where(better, total, kept)
        lengths = torch.linalg.vector_norm(tried.flatten(1), dim=1).tolist()
        history.append(Iteration(number, {name: score.tolist() for name, score in scores.items()}, total.tolist(),
                                 kept.tolist(), lengths, [0.0] * len(noise), (~torch.isfinite(total)).tolist()))
    return OptimisedNoise(best.cpu(), pictures, kept, history)


def fresh_noise(generator: torch.Generator) -> Propose:
    """Proposals that know nothing of the best: best-of-n."""
    return lambda best: torch.randn(best.shape, generator=generator).to(best.device)


def near(generator: torch.Generator, distance: float = 0.3) -> Propose:
    """Neighbours of the best, Gaussian again: sqrt(1 - d^2) best + d noise (zero-order search, Ma et al. 2025)."""
    return lambda best: (math.sqrt(1 - distance ** 2) * best
                         + distance * torch.randn(best.shape, generator=generator).to(best.device))
