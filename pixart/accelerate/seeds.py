"""Hand-made schedules that a search starts from: the families of ECAD's published seed population, and uneven steps."""
from collections.abc import Iterator

import torch

from .fora import every_n
from .schedule import BRANCHES, BranchSchedule, whole_steps
from .t_gate import t_gate_schedule


def hand_made(steps: int, depth: int) -> list[BranchSchedule]:
    """Those that reuse anything, each once. steps: at least 3."""
    made = {schedule.bits: schedule for schedule in families(steps, depth)}
    return [schedule for schedule in made.values() if not schedule.computed().all()]


def families(steps: int, depth: int) -> Iterator[BranchSchedule]:
    """ECAD's, and whole steps that stand closer at the beginning or at the end.

    All branches every n-th step; attention every n-th step; T-GATE without its mean; one branch, evenly spaced.
    """
    for every in range(2, min(9, steps + 1)):
        yield every_n(steps, depth, every)
        yield whole_steps(f"attention, every {every}", steps, depth, range(0, steps, every), ("attn", "cross_attn"))
    for count in range(max(2, steps // 5), 1 + steps // 2):
        for power, where in ((0.7, "late"), (1.4, "early")):
            yield whole_steps(f"{count} steps, more of them {where}", steps, depth, crowded(steps, count, power))
    for gate in range(max(1, steps // 4), steps, max(1, steps // 4)):
        for every in (1, 3, 5):
            yield t_gate_schedule(steps, depth, gate, every)
    for name in BRANCHES:
        for blocks in sorted({1, max(1, depth // 2), depth}):
            for reused in sorted({max(1, steps // 4), steps // 2, steps - 2}):
                yield evenly(name, steps, depth, reused, blocks)


def crowded(steps: int, count: int, power: float) -> list[int]:
    """`count` steps of a sampling, the first and the last among them, closer at the beginning for a power above 1."""
    return [round((steps - 1) * (i / (count - 1)) ** power) for i in range(count)]


def evenly(name: str, steps: int, depth: int, reused: int, blocks: int) -> BranchSchedule:
    """One branch of so many blocks reused in so many steps, both spread evenly."""
    bits = torch.ones(steps, depth, len(BRANCHES), dtype=torch.bool)
    at_steps = [1 + i * (steps - 1) // reused for i in range(reused)]
    at_blocks = [i * depth // blocks for i in range(blocks)]
    for step in at_steps:
        bits[step, at_blocks, BRANCHES.index(name)] = False
    return BranchSchedule.of(f"{name} of {blocks} blocks in {reused} steps", bits)
