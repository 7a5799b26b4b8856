"""Timesteps of one density a step, so that all rows of a batch have as many tokens (FlexDiT, arXiv 2412.06028)."""
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from ..model.flexdit_config import Density
from ..sampling.schedule import STEPS, Table
from .draws import draw_rows
from .timesteps import Timesteps, systematic


@dataclass(frozen=True)
class OneStretch(Timesteps):
    """The same distribution, with all images of a step in one stretch of the timesteps, drawn by its share of them.

    A step learns about one stretch; all steps together follow the distribution.
    """

    starts: tuple[int, ...] = (0,)      # first timesteps of the stretches

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """As `Timesteps.draw`."""
        device = generator.device
        chosen = torch.rand((), generator=generator, device=device)
        quantiles = systematic(count, generator) if self.stratified else draw_rows(torch.rand, (count,), generator)
        borders = self._borders.at(torch.arange(len(self.starts) + 1, device=device), chosen).flatten()
        stretch = torch.searchsorted(borders[1:-1].contiguous(), chosen, right=True)
        low, high = borders[stretch], borders[stretch + 1]
        ends = self._ends.at(torch.arange(STEPS - 1, device=device), chosen).flatten()
        return torch.searchsorted(ends, low + (high - low) * quantiles, right=True)

    @cached_property
    def _borders(self) -> Table:
        """Where the stretches lie in the unit interval, 0 and 1 included."""
        total = self.probabilities.cumsum(0)
        ends = (total / total[-1]).tolist()
        return Table([0.0, *(ends[start - 1] for start in self.starts[1:]), 1.0])


def one_density(timesteps: Timesteps, density: Density) -> OneStretch:
    """The distribution with steps of one density."""
    return OneStretch(**{field.name: getattr(timesteps, field.name) for field in fields(Timesteps)},
                      starts=density.starts)
