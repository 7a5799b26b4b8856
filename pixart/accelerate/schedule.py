"""Which branch of which block is computed at which step, and which reuses its last output."""
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..model.block import PixArtBlock

BRANCHES = PixArtBlock.branches
BranchBits = tuple[tuple[tuple[bool, ...], ...], ...]


@dataclass(frozen=True)
class BranchSchedule:
    """bits[step][block][branch], branches in the order of BRANCHES: True = computed and kept, False = reused.

    The first step is computed whatever its bits say: there is nothing to reuse yet.
    """

    name: str
    bits: BranchBits

    def __post_init__(self) -> None:
        shapes = {(len(blocks), len(branches)) for blocks in self.bits for branches in blocks}
        if len(shapes) != 1 or next(iter(shapes))[1] != len(BRANCHES):
            raise ValueError(f"the schedule {self.name!r} is not a whole table of steps, blocks and "
                             f"{len(BRANCHES)} branches")

    @classmethod
    def of(cls, name: str, bits: Tensor) -> "BranchSchedule":
        """From a bool tensor (steps, depth, 3)."""
        schedule = cls(name, tuple(tuple(map(tuple, blocks)) for blocks in bits.bool().tolist()))
        schedule.__dict__["_tensor"] = bits.bool().clone()
        return schedule

    @classmethod
    def full(cls, steps: int, depth: int, name: str = "plain") -> "BranchSchedule":
        """Everything computed."""
        return cls.of(name, torch.ones(steps, depth, len(BRANCHES), dtype=torch.bool))

    @property
    def steps(self) -> int:
        return len(self.bits)

    @property
    def depth(self) -> int:
        return len(self.bits[0])

    @cached_property
    def _tensor(self) -> Tensor:
        return torch.tensor(self.bits, dtype=torch.bool)

    def tensor(self) -> Tensor:
        """The bits as written, (steps, depth, 3) bool."""
        return self._tensor.clone()

    def computed(self) -> Tensor:
        """What is computed in the end, (steps, depth, 3) bool: the bits with the first step set."""
        bits = self.tensor()
        bits[0] = True
        return bits

    def kept(self) -> Tensor:
        """Whose output is still needed after its step, (steps, depth, 3) bool: the next step reuses it."""
        reused = ~self.computed()
        return torch.cat([reused[1:], torch.zeros_like(reused[:1])])

    def within(self, allowed: range) -> "BranchSchedule":
        """The same with all steps outside of `allowed` computed."""
        if len(allowed) == self.steps:
            return self
        bits = self.tensor()
        outside = [step for step in range(self.steps) if step not in allowed]
        bits[outside] = True
        return BranchSchedule.of(self.name, bits)


def whole_steps(name: str, steps: int, depth: int, chosen: Sequence[int],
                branches: Sequence[str] = BRANCHES) -> BranchSchedule:
    """At the chosen steps everything is computed, at the others only what is not among `branches`."""
    bits = torch.ones(steps, depth, len(BRANCHES), dtype=torch.bool)
    others = [step for step in range(steps) if step not in chosen]
    for branch in branches:
        bits[others, :, BRANCHES.index(branch)] = False
    return BranchSchedule.of(name, bits)


def steps_within(steps: int, start: float, end: float) -> range:
    """The steps between two fractions of the sampling, 0 <= start <= end <= 1: 0 and 1 are all; else ValueError."""
    if not 0 <= start <= end <= 1:
        raise ValueError(f"reuse from {start} to {end}; expected 0 <= start <= end <= 1")
    return range(round(start * steps), round(end * steps))
