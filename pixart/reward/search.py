"""Noise without gradients: the best of many, and the best of ever new neighbours of the best.

These are what gradients have to beat at equal cost, where a backward pass counts as two forward ones.
"""
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .optimise import Draw, Iteration, NoiseRecipe, OptimisedNoise, WatchIteration, not_finite
from .protocol import WeightedSum

Propose = Callable[[Tensor], Tensor]        # best noise so far -> noise to try, both (B, C, h, w)


def forwards_of(recipe: NoiseRecipe) -> int:
    """Forward passes that cost as much as an optimisation: a pass an iteration, and two for each gradient."""
    return recipe.iterations + 2 * (recipe.iterations - 1)


@torch.no_grad()
def search_noise(draw: Draw, reward: WeightedSum, prompts: Sequence[str], noise: Tensor, tries: int,
                 propose: Propose, watch: WatchIteration | None = None,
                 stops: tuple[type[BaseException], ...] = (KeyboardInterrupt,)) -> OptimisedNoise:
    """The best of `noise` and `tries` - 1 proposals, row by row; watch and stops as of `optimise_noise`.

    Raises ValueError for no tries, FloatingPointError where the first gives no picture a finite reward.
    """
    if tries < 1:
        raise ValueError(f"{tries} tries asked for; at least 1 is needed")
    found = OptimisedNoise(noise.float().clone(), torch.empty(0), torch.full((len(noise),), -math.inf))
    try:
        for number in range(1, tries + 1):
            tried = found.noise if number == 1 else propose(found.noise)
            shown = draw(tried)
            keep_better(found, tried, shown, reward, prompts)
            if watch is not None:
                watch(found.history[-1], shown)
    except stops:
        if not found.history:
            raise
        found.stopped = True
    found.noise = found.noise.cpu()
    return found


def keep_better(found: OptimisedNoise, tried: Tensor, shown: Tensor, reward: WeightedSum, prompts: Sequence[str]
                ) -> None:
    """Score the pictures `shown` of `tried`, take those rows over that are better than before, and note it."""
    scores = reward.scores(shown, prompts)
    total = reward.total(scores).cpu()
    if not found.history and not torch.isfinite(total).any():
        raise FloatingPointError(not_finite(scores))
    better = torch.isfinite(total) & (total > found.total)
    rows, before = better.view(-1, 1, 1, 1), found.pictures if found.history else shown.cpu()
    found.pictures = torch.where(rows, shown.cpu(), before)
    found.noise = torch.where(rows.to(tried.device), tried, found.noise)
    found.total = torch.where(better, total, found.total)
    lengths = torch.linalg.vector_norm(tried.flatten(1), dim=1).tolist()
    found.history.append(Iteration(len(found.history) + 1, {name: score.tolist() for name, score in scores.items()},
                                   total.tolist(), found.total.tolist(), lengths, [0.0] * len(tried),
                                   (~torch.isfinite(total)).tolist()))


def fresh_noise(generator: torch.Generator) -> Propose:
    """Proposals that know nothing of the best: best-of-n."""
    return lambda best: torch.randn(best.shape, generator=generator).to(best.device)


def near(generator: torch.Generator, distance: float = 0.3) -> Propose:
    """Neighbours of the best, Gaussian again: sqrt(1 - d^2) best + d noise (zero-order search, Ma et al. 2025)."""
    return lambda best: (math.sqrt(1 - distance ** 2) * best
                         + distance * torch.randn(best.shape, generator=generator).to(best.device))
