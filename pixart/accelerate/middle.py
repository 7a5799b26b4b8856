"""Reuse of what the blocks between the first and the last ones add, decided for each row on its own."""
from collections.abc import Hashable

import torch
from torch import Tensor

from ..model.lane_memory import LaneMemory, LaneNotes
from ..model.policy import Pass, Policy, Run
from .span import SpanInput
from .taylor import Taylor

MIDDLE: Hashable = "middle"


class ReuseMiddle(Policy):
    """Computes the first `front` and the last `back` blocks in every step, and those between where `decide` says so.

    Where not, the middle adds what it added when it was last computed, extrapolated by a Taylor series of `order`.
    """

    def __init__(self, depth: int, front: int, back: int, order: int) -> None:
        if front < 0 or back < 0 or front + back >= depth:
            raise ValueError(f"{front} first and {back} last blocks are always computed; of {depth} at least one must "
                             "be left to reuse")
        self.span, self.memory = range(front, depth - back), LaneMemory()
        self.taylor = Taylor(self.memory, MIDDLE, order)
        self.choices: LaneNotes[bool] = LaneNotes()

    def decide(self, p: Pass) -> list[bool]:
        """For each row whether the middle is computed in this step. p is its input."""
        raise NotImplementedError

    def block(self, index: int, p: Pass, go: Run) -> Tensor:
        if index not in self.span:
            return go(p)
        if index == self.span.start:
            known = self.taylor.known(p.known_step())
            self.choices.put(p.known_step(), [wanted or not have for wanted, have in zip(self.decide(p), known)])
        chosen = self.choices.get(p.known_step())
        new, old = ([row for row, choice in enumerate(chosen) if bool(choice) is wanted] for wanted in (True, False))
        if not old:
            return self.compute(index, p, go)
        if not new:
            return self.reuse(index, p)
        x = p.x.new_empty(p.x.shape)
        x[new], x[old] = self.compute(index, p.part(new), go), self.reuse(index, p.part(old))
        return x

    def compute(self, index: int, p: Pass, go: Run) -> Tensor:
        entered = SpanInput(self.memory, MIDDLE)
        entered.enter(index, self.span, p)
        x = go(p)
        if index == self.span[-1]:
            self.taylor.keep(p.known_step(), entered.added(p, x))
        return x

    def reuse(self, index: int, p: Pass) -> Tensor:
        x = p.controlled(index).x
        return x + self.taylor.guess(p.known_step()) if index == self.span[-1] else x

    def kept(self, depth: int) -> int:
        return self.taylor.order + 2


class StepMask(ReuseMiddle):
    """Computes the middle in the steps that a mask names, as cache-dit's step mask; the first step always."""

    def __init__(self, mask: list[bool], depth: int, front: int = 0, back: int = 0, order: int = 0) -> None:
        super().__init__(depth, front, back, order)
        self.mask = mask

    def decide(self, p: Pass) -> list[bool]:
        step = p.known_step()
        if step.total != len(self.mask):
            raise ValueError(f"the step mask has {len(self.mask)} steps, this sampling takes {step.total}")
        return [self.mask[step.index]] * len(step.lanes)


def mean_size(x: Tensor) -> Tensor:
    """(B, N, D) -> (B,): the mean magnitude of each row."""
    return x.abs().mean(dim=(1, 2), dtype=torch.float32)
