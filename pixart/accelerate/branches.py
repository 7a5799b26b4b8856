"""The policy that follows a schedule of branches (ECAD, arXiv 2506.15682; FORA, arXiv 2407.01425)."""
from torch import Tensor

from ..model.lane_memory import LaneMemory
from ..model.policy import Pass, Policy, Run, Step
from .schedule import BRANCHES, BranchSchedule


class ReuseBranches(Policy):
    """Computes the branches that the schedule names; the others join their last output, under the gate of this step.

    A branch without a kept output is computed. Only outputs that the next step reuses are kept.
    """

    def __init__(self, schedule: BranchSchedule) -> None:
        self.schedule, self.memory = schedule, LaneMemory()
        self._computed, self._kept = schedule.computed().tolist(), schedule.kept().tolist()

    def stack(self, p: Pass, go: Run) -> Tensor:
        """Refuses a sampling of another number of steps."""
        total = p.known_step().total
        if total != self.schedule.steps:
            raise ValueError(f"the schedule {self.schedule.name!r} is for {self.schedule.steps} steps, this sampling "
                             f"takes {total}; sample in {self.schedule.steps} steps or choose another schedule")
        return go(p)

    def branch(self, index: int, name: str, p: Pass, go: Run) -> Tensor:
        step, key, column = p.known_step(), (index, name), BRANCHES.index(name)
        if index >= self.schedule.depth:
            raise ValueError(f"the schedule {self.schedule.name!r} is for {self.schedule.depth} blocks, this model has "
                             "more; use one that was made for it")
        last = None if self._computed[step.index][index][column] else self.memory.get(step, key)
        return self.keep(step, key, go(p), self._kept[step.index][index][column]) if last is None else last

    def keep(self, step: Step, key: tuple[int, str], output: Tensor, needed: bool) -> Tensor:
        if needed:
            self.memory.put(step, key, output)
        else:
            self.memory.drop(step, key)
        return output

    def kept(self, depth: int) -> int:
        return int(self.schedule.kept().sum((1, 2)).max())
