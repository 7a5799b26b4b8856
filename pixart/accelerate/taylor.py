"""Extrapolation of kept values: Taylor series of finite differences (TaylorSeer, arXiv 2503.06923)."""
import math
from collections.abc import Hashable

import torch
from torch import Tensor

from ..model.lane_memory import LaneMemory, LaneNotes
from ..model.policy import Step

MOST_ORDERS = 2  # orders beyond this amplify noise


class Taylor:
    """Values of rows at computed steps, and their extrapolation to others.

    order 0 repeats the last value; 1 and 2 add its change and the change of that. Steps are counted as in Step.index.
    """

    def __init__(self, memory: LaneMemory, key: Hashable, order: int = 0) -> None:
        if not 0 <= order <= MOST_ORDERS:
            raise ValueError(f"Taylor order {order} asked for; 0 to {MOST_ORDERS} are possible")
        self.memory, self.key, self.order = memory, key, order
        self.notes: LaneNotes[tuple[int, int]] = LaneNotes()     # of each lane: last computed step, differences known

    def known(self, step: Step) -> list[bool]:
        """For each row whether there is anything to repeat."""
        return [note is not None for note in self.notes.get(step)]

    def keep(self, step: Step, value: Tensor) -> None:
        """value (B, N, D), computed at this step."""
        for note, rows in rows_by_note(self.notes.get(step)):
            self._keep(step.part(rows), value if len(rows) == len(value) else value[rows], note)

    def _keep(self, step: Step, value: Tensor, note: tuple[int, int] | None) -> None:
        values, known = [value], 0
        if note is not None and note[0] == step.index:      # evaluated again: its changes are known
            known = note[1]
        elif note is not None:
            for order in range(min(self.order, note[1] + 1)):
                before = self.memory.get(step, (self.key, order))
                assert before is not None
                values.append((values[-1] - before) / (step.index - note[0]))
        for order, difference in enumerate(values):
            self.memory.put(step, (self.key, order), difference)
        self.notes.put(step, [(step.index, max(known, len(values) - 1))] * len(value))

    def guess(self, step: Step) -> Tensor:
        """The extrapolated value at this step, (B, N, D); all rows must be known."""
        parts = [(rows, self._guess(step.part(rows), note)) for note, rows in rows_by_note(self.notes.get(step))]
        if len(parts) == 1:
            return parts[0][1]
        order = [row for rows, _ in parts for row in rows]
        back = [order.index(row) for row in range(len(order))]
        return torch.cat([guess for _, guess in parts])[back]

    def _guess(self, step: Step, note: tuple[int, int] | None) -> Tensor:
        assert note is not None
        guess, ahead = self.memory.get(step, (self.key, 0)), step.index - note[0]
        assert guess is not None
        for order in range(1, note[1] + 1):
            difference = self.memory.get(step, (self.key, order))
            assert difference is not None
            guess = torch.add(guess, difference, alpha=ahead ** order / math.factorial(order))
        return guess


def rows_by_note(notes: list) -> list[tuple[tuple[int, int] | None, list[int]]]:
    """Rows by note, so that each row is extrapolated as it would be alone."""
    groups: dict[tuple[int, int] | None, list[int]] = {}
    for row, note in enumerate(notes):
        groups.setdefault(note, []).append(row)
    return list(groups.items())
