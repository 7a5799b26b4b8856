"""A way to reuse work in a sampling, with what it computes known before it starts."""
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ..config import PixArtConfig
from ..model.policy import Policy
from ..resolution import token_grid
from .cost import Costs
from .schedule import BranchSchedule, steps_within

NOTHING_REUSED = "nothing reused"


@dataclass(frozen=True)
class SamplingJob:
    """What is about to be sampled, as far as the work depends on it."""

    config: PixArtConfig
    steps: int
    tokens: int                     # of the image, h * w
    text: int                       # of the longest caption
    guided: bool                    # two rows an image, one with the negative prompt
    allowed: range | None = None    # steps in which something may be reused; None: all

    @classmethod
    def of(cls, config: PixArtConfig, steps: int, height: int, width: int, text: int, guided: bool) -> "SamplingJob":
        """For an image of so many pixels."""
        return cls(config, steps, math.prod(token_grid(height, width, config.patch)), text, guided)

    def within(self, start: float, end: float) -> "SamplingJob":
        """The same with reuse in a share of the steps only; 0 and 1 are all."""
        return replace(self, allowed=None if (start, end) == (0, 1) else steps_within(self.steps, start, end))

    def costs(self, attention: bool = True) -> Costs:
        return Costs(self.config, self.tokens, self.text, attention)

    def rows(self, gate: int | None = None) -> list[int]:
        """Rows per image in each step; gate: the step from which guidance is dropped."""
        return [2 if self.guided and (gate is None or step < gate) else 1 for step in range(self.steps)]

    @property
    def window(self) -> range:
        return range(self.steps) if self.allowed is None else self.allowed

    @property
    def plain(self) -> int:
        """MACs of an image without any reuse."""
        return self.costs().of(BranchSchedule.full(self.steps, self.config.depth), self.rows())


@dataclass(frozen=True)
class CachePlan:
    """A setting of a method for a job.

    computed: what is computed in each step; for a method that decides while it runs, the same amount, spread evenly.
    gate: the step from which guidance is dropped. make: policies for one sampling, or several one after the
    other.
    """

    setting: str                                # for display: "FORA, every 3"
    computed: BranchSchedule
    make: Callable[[], list[Policy]] = field(compare=False)
    gate: int | None = None
    by_branch: bool = True                      # whether policies intercept branches

    def work(self, job: SamplingJob) -> int:
        """MACs of one image."""
        return job.costs().of(self.computed, job.rows(self.gate))

    def ratio(self, job: SamplingJob) -> float:
        """How many times less work than without any reuse; 2 is half of it."""
        return job.plain / self.work(job)


def plain_plan(job: SamplingJob) -> CachePlan:
    """Nothing is reused."""
    return CachePlan(NOTHING_REUSED, BranchSchedule.full(job.steps, job.config.depth), list, by_branch=False)
