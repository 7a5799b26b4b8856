"""Noise without gradients: the best of many, and the best of ever new neighbours of the best.

These are what gradients have to beat at equal cost, where a backward pass counts as two forward ones.
"""
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .optimise import Best, Generate, NoiseRecipe, OptimisedNoise, WatchIteration, not_finite, noted, outcome
from .protocol import WeightedSum

Propose = Callable[[Tensor], Tensor]        # best noise so far -> noise to try, both (B, C, h, w)


def forwards_of(recipe: NoiseRecipe) -> int:
    """Forward passes that cost as much as an optimisation: a pass an iteration, and two for each gradient."""
    return recipe.iterations + 2 * (recipe.iterations - 1)


@torch.no_grad()
def search_noise(generate: Generate, reward: WeightedSum, prompts: Sequence[str], noise: Tensor, tries: int,
                 propose: Propose, watch: WatchIteration | None = None,
                 stops: tuple[type[BaseException], ...] = (KeyboardInterrupt,)) -> OptimisedNoise:
    """The best of `noise` and `tries` - 1 proposals, row by row; watch and stops as of `optimise_noise`.

    Raises ValueError for no tries, FloatingPointError where no try of an image gave a finite reward.
    """
    if tries < 1:
        raise ValueError(f"{tries} tries asked for; at least 1 is needed")
    best, history, stopped = Best(noise.float()), [], False
    try:
        for number in range(1, tries + 1):
            tried = best.noise if number == 1 else propose(best.noise)
            shown = generate(tried)
            scores = reward.scores(shown, prompts)
            total = reward.total(scores)
            finite = torch.isfinite(total)
            if number == 1 and not finite.any():
                raise FloatingPointError(not_finite(scores))
            best.take(tried, shown, total, finite)
            history.append(noted(number, scores, total, best, tried, torch.zeros_like(tried), finite))
            if watch is not None:
                watch(history[-1], shown)
    except stops:
        if not history:
            raise
        stopped = True
    return outcome(best, history, stopped)


def fresh_noise(generator: torch.Generator) -> Propose:
    """Proposals that know nothing of the best: best-of-n."""
    return lambda best: torch.randn(best.shape, generator=generator).to(best.device)


def near(generator: torch.Generator, distance: float = 0.3) -> Propose:
    """Neighbours of the best, Gaussian again: sqrt(1 - d^2) best + d noise (zero-order search, Ma et al. 2025)."""
    return lambda best: (math.sqrt(1 - distance ** 2) * best
                         + distance * torch.randn(best.shape, generator=generator).to(best.device))


SEARCHES = {"best-of-n": fresh_noise, "search": near}
WAYS = ("gradient", *SEARCHES)          # of finding better noise
