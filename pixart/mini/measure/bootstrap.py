"""Intervals by resampling prompts, and tests of two methods on the same prompts."""
from dataclasses import dataclass
from math import comb

import numpy as np
import torch
from torch import Tensor

TIMES = 4000         # bootstrap resamples
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value, or a difference of two, and the ends of its interval."""

    value: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2

    @property
    def clear(self) -> bool:
        """Is zero outside the interval?"""
        return self.low > 0 or self.high < 0


def resamples(count: int, times: int = TIMES, seed: int = 0) -> Tensor:
    """(times, count) float64: how often each prompt occurs when `count` are drawn with replacement."""
    numbers = np.random.default_rng(seed).integers(count, size=(times, count))
    flat = (numbers + count * np.arange(times)[:, None]).ravel()
    return torch.from_numpy(np.bincount(flat, minlength=times * count).reshape(times, count).astype(np.float64))


def estimate(values: Tensor, weights: Tensor, drawn: Tensor) -> Estimate:
    """sum(values) / sum(weights) over the prompts, (n,) each, with its percentile interval from `resamples`."""
    return _interval((values.sum() / weights.sum()).item(), _ratios(values, weights, drawn))


def paired_difference(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], drawn: Tensor) -> Estimate:
    """a minus b, each values and weights of the same prompts; both are resampled together, so it is paired."""
    value = (a[0].sum() / a[1].sum() - b[0].sum() / b[1].sum()).item()
    return _interval(value, _ratios(*a, drawn) - _ratios(*b, drawn))


def _ratios(values: Tensor, weights: Tensor, drawn: Tensor) -> Tensor:
    return (drawn @ values) / (drawn @ weights)


def _interval(value: float, samples: Tensor) -> Estimate:
    """Percentiles of the resampled values; resamples without a single count (a rare attribute) are left out."""
    kept = samples[samples.isfinite()]
    if not len(kept):
        return Estimate(value, float("nan"), float("nan"))
    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(kept, torch.tensor([tail, 1 - tail], dtype=kept.dtype)).tolist()
    return Estimate(value, low, high)


def mcnemar(a: Tensor, b: Tensor) -> float:
    """Two-sided exact p-value that two methods are equally often correct; a, b (n,) bool, of the same prompts.

    McNemar's test: of the prompts that only one method has right, each had them with probability one half.
    """
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    total = only_a + only_b
    tail = sum(comb(total, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2 ** total)
