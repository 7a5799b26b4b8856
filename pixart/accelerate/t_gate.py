"""T-GATE: from a gate step on, cross-attention is reused and guidance dropped (arXiv 2404.02747)."""
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..model.lane_memory import LaneNotes
from ..model.policy import Lane, Pass, Run, Step
from .branches import ReuseBranches
from .schedule import BRANCHES, BranchSchedule

ATTENTION = ("attn", "cross_attn")


def t_gate_schedule(steps: int, depth: int, gate: int, every: int = 1, later: int = 1,
                    warm_up: int = 2) -> BranchSchedule:
    """The published rule for steps counted from 0; every, later and warm_up are k1, k2 and w of the authors' code.

    Before step `gate` cross-attention is computed and self-attention in every step up to `warm_up`, then in those that
    `every` divides; step gate - 1 computes all. From `gate` on cross-attention is reused, and self-attention computed
    in steps that `later` divides. MLPs are always computed.
    """
    if gate < 1 or every < 1 or later < 1 or warm_up < 0:
        raise ValueError(f"gate {gate}, every {every}, later {later}, warm-up {warm_up} asked for; the first three "
                         "start at 1, the last at 0")
    bits = torch.ones(steps, depth, len(BRANCHES), dtype=torch.bool)
    for step in range(steps):
        before = step <= warm_up or step == gate - 1 or step % every == 0
        bits[step, :, BRANCHES.index("attn")] = before if step < gate else step % later == 0
        bits[step, :, BRANCHES.index("cross_attn")] = step < gate
    return BranchSchedule.of(f"T-GATE, gate {gate}, k1 {every}, k2 {later}", bits)


class TGate(ReuseBranches):
    """Follows a schedule whose steps from `gate` on reuse the mean of both prompts' outputs at step gate - 1.

    drop_guidance: from `gate` on the positive prompt runs alone. A row without a counterpart (no guidance, as in
    few-step sampling) reuses its own. averaged: branches to which this applies.
    """

    def __init__(self, schedule: BranchSchedule, gate: int, drop_guidance: bool = True,
                 averaged: Sequence[str] = ATTENTION) -> None:
        super().__init__(schedule)
        if gate < 1:
            raise ValueError(f"gate {gate} asked for; it must be 1 or more, the first step that reuses")
        self.gate, self.drop_guidance, self.averaged = gate, drop_guidance, tuple(averaged)
        self._done: defaultdict[tuple[int, str], LaneNotes[bool]] = defaultdict(LaneNotes)

    def guides(self, index: int, total: int) -> bool:
        return index < self.gate or not self.drop_guidance

    def branch(self, index: int, name: str, p: Pass, go: Run) -> Tensor:
        step, key = p.known_step(), (index, name)
        if name in self.averaged and step.index >= self.gate:
            self.average(step, key)
        output = super().branch(index, name, p, go)
        if name in self.averaged and step.index == self.gate - 1 and self.reused_later(index, name):
            self.memory.put(step, (*key, "apart"), output)
        return output

    def reused_later(self, index: int, name: str) -> bool:
        column = BRANCHES.index(name)
        return not all(step[index][column] for step in self._computed[self.gate:])

    def average(self, step: Step, key: tuple[int, str]) -> None:
        """Replace the kept output of each lane by the mean with its counterpart's, once."""
        apart, done = (*key, "apart"), self._done[key]
        known = self.memory.lanes(apart)
        waiting = tuple(lane for lane, found in zip(step.lanes, done.get(step)) if lane in known and not found)
        if not waiting:
            return
        means = []
        for lane in waiting:
            both = (self.memory.get(replace(step, lanes=(each,)), apart) for each in (lane, *counterpart(lane, known)))
            means.append(torch.stack([output for output in both if output is not None]).mean(0))
        self.memory.put(replace(step, lanes=waiting), key, torch.cat(means))
        done.put(replace(step, lanes=waiting), [True] * len(waiting))

    def kept(self, depth: int) -> int:
        return super().kept(depth) + len(self.averaged) * depth


def counterpart(lane: Hashable, known: Sequence[Hashable]) -> Sequence[Hashable]:
    """The row of the same image with the other kind of prompt, if there is one; of several the first."""
    if not isinstance(lane, Lane):
        return []
    return [other for other in known if isinstance(other, Lane) and other.image == lane.image
            and other.negative != lane.negative][:1]
