"""First-block cache: the middle is computed once the first blocks have changed enough (ParaAttention, cache-dit)."""
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..model.lane_memory import LaneNotes
from ..model.policy import Pass, Run, Step
from .middle import ReuseMiddle, mean_size

FRONT, INPUT = "front", "front input"


@dataclass(frozen=True)
class Limits:
    """How far a threshold may go. With `passes` each row is computed in exactly that many steps, evenly spread.

    The steps that leave a choice are then cut into as many windows as passes are left, and the threshold chooses one
    step of each: without windows it would spend all of them early, where images change most.
    """

    warm_up: int = 2                # first steps, which are always computed
    in_a_row: int | None = None     # most reused steps between two computed ones
    passes: int | None = None       # computed steps, of all steps
    allowed: range | None = None    # steps in which anything may be reused; None: all

    def __post_init__(self) -> None:
        if self.warm_up < 1 or min(self.in_a_row or 1, self.passes or 1) < 1:
            raise ValueError(f"{self}: all limits start at 1")

    def allows(self, step: int) -> bool:
        """Whether anything may be reused in this step."""
        return step >= self.warm_up and (self.allowed is None or step in self.allowed)

    def paced(self, step: int, total: int, computed: int) -> bool | None:
        """With `passes`: whether a row with so many computed steps is computed in this one; None: by threshold."""
        assert self.passes is not None
        free = [index for index in range(total) if self.allows(index)]
        passes, place = self.passes - (total - len(free)), free.index(step)
        if passes <= 0 or passes >= len(free):
            return passes > 0
        window, following = (each * passes // len(free) for each in (place, place + 1))
        if computed - (step - place) > window:      # before this step, step - place ones had to be computed
            return False
        return True if following > window else None


@dataclass(frozen=True)
class RowCounts:
    """Of a row: steps computed so far, steps reused since the last of them, and the last step with its decision."""

    computed: int = 0
    reused: int = 0
    step: int = -1
    chosen: bool = True

    def after(self, step: int, new: bool) -> "RowCounts":
        """With this step counted, once however often a solver evaluates it."""
        if step == self.step:
            return self
        return RowCounts(self.computed + new, 0 if new else self.reused + 1, step, new)


class FirstBlock(ReuseMiddle):
    """Reuses the middle while the first blocks' residual differs by less than `threshold` from when it was computed.

    The difference is mean |now - then| / mean |then|, for each row on its own. It is read back from the device once a
    step, where the limits leave a choice: where a solver evaluates a step more than once, the first time decides.
    """

    def __init__(self, depth: int, threshold: float = 0.08, order: int = 1, limits: Limits | None = None,
                 front: int = 1, back: int = 0) -> None:
        if front < 1:
            raise ValueError("a threshold needs at least one first block to look at")
        if not threshold >= 0:
            raise ValueError(f"the threshold is {threshold}; it must be 0 (nothing is reused) or more")
        super().__init__(depth, front, back, order)
        self.threshold, self.limits = threshold, limits or Limits()
        self.counts: LaneNotes[RowCounts] = LaneNotes()

    def block(self, index: int, p: Pass, go: Run) -> Tensor:
        if index == 0:
            self.memory.put(p.known_step(), INPUT, p.x)
        return super().block(index, p, go)

    def decide(self, p: Pass) -> list[bool]:
        step = p.known_step()
        entered = self.memory.get(step, INPUT)
        if entered is None:         # feedback runs these blocks once more, and not the first one: as decided before
            return [count is None or count.chosen for count in self.counts.get(step)]
        self.memory.drop(step, INPUT)
        added = p.x - entered
        counts = [count or RowCounts() for count in self.counts.get(step)]
        choices = [self.forced(step, count) for count in counts]
        open_rows = [row for row, choice in enumerate(choices) if choice is None]
        for row, changed in zip(open_rows, self.changed(step, open_rows, added)):
            choices[row] = changed
        chosen = [bool(choice) for choice in choices]
        self.counts.put(step, [count.after(step.index, new) for count, new in zip(counts, chosen)])
        new_rows = [row for row, new in enumerate(chosen) if new]
        if new_rows:
            whole = len(new_rows) == len(chosen)
            self.memory.put(step.part(new_rows), FRONT, added if whole else added[new_rows])
        return chosen

    def forced(self, step: Step, count: RowCounts) -> bool | None:
        """What the limits dictate for a row; None where the threshold decides."""
        limits = self.limits
        if count.computed == 0 or not limits.allows(step.index):
            return True
        if count.step == step.index:
            return count.chosen
        if limits.passes is not None and (paced := limits.paced(step.index, step.total, count.computed)) is not None:
            return paced
        if limits.in_a_row is not None and count.reused >= limits.in_a_row:
            return True
        return None

    def changed(self, step: Step, rows: Sequence[int], added: Tensor) -> list[bool]:
        """Whether the first blocks of these rows have changed enough."""
        if not rows:
            return []
        then = self.memory.get(step.part(rows), FRONT)
        assert then is not None
        now = added if len(rows) == len(added) else added[list(rows)]
        change = mean_size(now - then) / mean_size(then)
        return [not each < self.threshold for each in change.tolist()]

    def kept(self, depth: int) -> int:
        return super().kept(depth) + 2
