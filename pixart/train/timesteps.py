"""From which timesteps a diffusion training draws, and how they spread over the images of a step.

Under the family's linear betas more than half of all uniform draws are nearly pure noise. Drawing more of them where an
image takes shape makes more of every step: around a log signal-to-noise ratio with the tails of a Laplace
distribution (Hang et al. 2024, "Improved Noise Schedule for Diffusion Training", section 3), or of a normal one, by
which alphas_cumprod is logit-normal (Esser et al. 2024, Stable Diffusion 3, section 3.1), or evenly from a range.
"""
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from ..sampling.schedule import ALPHAS_CUMPROD, STEPS, Table
from .draws import draw_rows, rows_of

TIMESTEP_DISTRIBUTIONS = ("uniform", "laplace", "logit-normal", "range")


@dataclass(frozen=True)
class Timesteps:
    """A distribution over the timesteps 0 .. 999."""

    kind: str = "uniform"         # uniform; laplace or logit-normal: around a log signal-to-noise ratio; or range
    centre: float = -3.0          # laplace, logit-normal: log SNR; 0 at t = 258, -1 at 357, -3 at 547, -6 at 769
    scale: float = 1.5            # laplace, logit-normal: spread of the log SNR
    low: int = 250                # range: first timestep
    high: int = 800               # range: last timestep
    share: float = 0.7            # share of images drawn this way; the others uniformly from all timesteps
    stratified: bool = False      # spread the draws of a step evenly over the distribution

    def __post_init__(self) -> None:
        if self.kind not in TIMESTEP_DISTRIBUTIONS:
            raise ValueError(f"timesteps.kind is {self.kind!r}; use {', '.join(TIMESTEP_DISTRIBUTIONS)}")
        if not 0 < self.share <= 1:
            raise ValueError(f"timesteps.share is {self.share}; it must be above 0 and at most 1")
        if not self.scale > 0 or not abs(self.centre) <= 30:
            raise ValueError(f"timesteps.scale is {self.scale}, centre {self.centre}; scale must be above 0, centre a "
                             "log signal-to-noise ratio between -30 and 30")
        if not 0 <= self.low <= self.high < STEPS:
            raise ValueError(f"timesteps.low is {self.low}, high {self.high}; expected 0 <= low <= high <= {STEPS - 1}")

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) timesteps, int64, on the generator's device.

        With a `StepGenerator` these are its rows of a draw for the whole step. Stratified, the step's images take
        evenly spaced quantiles, all moved by one random number, and round at the end: each image alone is still
        drawn from the whole distribution.
        """
        if self.kind == "uniform" and not self.stratified:
            return draw_rows(partial(torch.randint, STEPS), (count,), generator)
        quantiles = systematic(count, generator) if self.stratified else draw_rows(torch.rand, (count,), generator)
        ends = self._ends.at(torch.arange(STEPS - 1, device=quantiles.device), quantiles).flatten()
        return torch.searchsorted(ends, quantiles, right=True)

    @cached_property
    def probabilities(self) -> Tensor:
        """(1000,) float64, sum 1."""
        even = torch.full((STEPS,), 1 / STEPS, dtype=torch.float64)
        if self.kind == "uniform":
            return even
        chosen = self._density()
        return self.share * chosen / chosen.sum() + (1 - self.share) * even

    def _density(self) -> Tensor:
        """(1000,) float64, what the kind gives to each timestep, up to a factor."""
        t = torch.arange(STEPS)
        if self.kind == "range":
            return ((t >= self.low) & (t <= self.high)).double()
        log_snr = torch.logit(torch.tensor(ALPHAS_CUMPROD, dtype=torch.float64))
        distance = (log_snr - self.centre) / self.scale
        density = -distance.abs() if self.kind == "laplace" else -distance.square() / 2
        width, = torch.gradient(log_snr)             # of a timestep, in log SNR
        return density.exp() * width.abs()

    @cached_property
    def _ends(self) -> Table:
        """Where each timestep's share of the unit interval ends."""
        ends = self.probabilities.cumsum(0)
        return Table((ends / ends[-1]).tolist())


def systematic(count: int, generator: torch.Generator) -> Tensor:
    """(count,) numbers in [0, 1): rows of evenly spaced ones over the whole step, turned by one random number."""
    rows, total = rows_of(generator, count)
    start = torch.rand((), generator=generator, device=generator.device)
    places = torch.arange(total, device=generator.device)[rows] / total
    return (start + places).remainder(1)
