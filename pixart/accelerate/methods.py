"""The table of methods: for a job, all settings that each of them has."""
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from .branches import ReuseBranches
from .delta_dit import DeltaCache, delta_spans
from .first_block import FirstBlock, Limits
from .fora import every_n, fora
from .middle import StepMask
from .plan import CachePlan, SamplingJob
from .schedule import BRANCHES, BranchSchedule
from .shipped import shipped_schedules
from .t_gate import TGate, t_gate_schedule
from .titles import CACHE_TITLES

WARM_UP_STEPS = 2           # of the first-block threshold: the first steps lay out the image
TAYLOR = 1                  # its order


@dataclass(frozen=True)
class CacheMethod:
    """A method and its settings for a job, each at most as much work as doing everything."""

    name: str               # by which it is chosen
    title: str              # for display
    plans: Callable[[SamplingJob], Iterable[CachePlan]]
    ready_made: bool = False    # schedules found by search; none of them computes everything


def schedule_plan(schedule: BranchSchedule, job: SamplingJob) -> CachePlan:
    """Follow a schedule of branches."""
    chosen = schedule.within(job.window)
    return CachePlan(schedule.name, chosen, lambda: [ReuseBranches(chosen)])


def gated_plan(schedule: BranchSchedule, gate: int, job: SamplingJob,
               averaged: Sequence[str] = ("attn", "cross_attn")) -> CachePlan:
    """Follow a schedule with T-GATE's step; guidance is dropped only if reuse is allowed up to the last step."""
    chosen = schedule.within(job.window)
    drops = job.guided and job.window.stop >= job.steps and gate in job.window
    return CachePlan(schedule.name, chosen, lambda: [TGate(chosen, gate, drops, averaged)], gate if drops else None)


def fora_plans(make: Callable[[int, int, int], BranchSchedule], job: SamplingJob) -> Iterator[CachePlan]:
    for every in range(2, job.steps + 1):
        yield schedule_plan(make(job.steps, job.config.depth, every), job)


def t_gate_plans(job: SamplingJob) -> Iterator[CachePlan]:
    for gate in range(job.steps - 1, 0, -1):
        for every in (1, 2, 3):
            schedule = t_gate_schedule(job.steps, job.config.depth, gate, every)
            yield gated_plan(schedule, gate, job)


def delta_plans(job: SamplingJob) -> Iterator[CachePlan]:
    """From every second step computed whole, as published, with more and more blocks reused in the others."""
    depth = job.config.depth
    for every in range(2, job.steps + 1):
        for blocks in range(1, depth):
            spans = delta_spans(job.steps, depth, every, blocks)
            spans = [span if step in job.window else None for step, span in enumerate(spans)]
            yield CachePlan(f"Delta-DiT, {blocks} of {depth} blocks reused, all computed every {every} steps",
                            without(spans, depth, "Delta-DiT"), partial(delta_policies, spans), by_branch=False)


def delta_policies(spans: Sequence[range | None]) -> list:
    return [DeltaCache(spans)]


def without(spans: Sequence[range | None], depth: int, name: str) -> BranchSchedule:
    """The schedule of a method that leaves these blocks out."""
    bits = torch.ones(len(spans), depth, len(BRANCHES), dtype=torch.bool)
    for step, span in enumerate(spans):
        if span is not None:
            bits[step, span.start:span.stop] = False
    return BranchSchedule.of(name, bits)


def mask_plans(job: SamplingJob) -> Iterator[CachePlan]:
    """All blocks in some steps, spread evenly over those in which reuse is allowed; none in the others."""
    for mask in masks(job):
        spans = [None if computed else range(job.config.depth) for computed in mask]
        yield CachePlan(f"{sum(mask)} of {job.steps} steps", without(spans, job.config.depth, "step mask"),
                        partial(mask_policies, mask, job.config.depth), by_branch=False)


def mask_policies(mask: list[bool], depth: int) -> list:
    return [StepMask(mask, depth)]


def masks(job: SamplingJob, first: int = 1) -> Iterator[list[bool]]:
    """Masks of computed steps, from most to fewest; at least the first `first` steps are computed."""
    window = [step for step in job.window if step >= first]
    for left in range(len(window) - 1, -1, -1):
        chosen = {window[(2 * i + 1) * len(window) // (2 * left)] for i in range(left)}
        yield [step not in window or step in chosen for step in range(job.steps)]


def first_block_plans(job: SamplingJob) -> Iterator[CachePlan]:
    """The threshold chooses when, the budget how often the middle is computed."""
    depth = job.config.depth
    for mask in masks(job, WARM_UP_STEPS):
        limits = Limits(WARM_UP_STEPS, None, sum(mask), job.window)
        spans = [None if computed else range(1, depth) for computed in mask]
        yield CachePlan(f"first-block threshold, {sum(mask)} of {job.steps} steps",
                        without(spans, depth, "first block"),
                        partial(first_block_policies, depth, limits), by_branch=False)


def first_block_policies(depth: int, limits: Limits) -> list:
    return [FirstBlock(depth, order=TAYLOR, limits=limits)]


def ecad_plans(job: SamplingJob) -> Iterator[CachePlan]:
    """The schedules that come with the package for networks of this depth and this number of steps."""
    for schedule in shipped_schedules():
        if (schedule.steps, schedule.depth) == (job.steps, job.config.depth):
            yield schedule_plan(schedule, job)


def random_plans(job: SamplingJob) -> Iterator[CachePlan]:
    """More and more branches left out, drawn with a fixed seed; each setting includes those of the one before."""
    drawn = torch.rand(job.steps, job.config.depth, len(BRANCHES), generator=torch.Generator().manual_seed(0))
    for percent in range(98, 0, -2):
        yield schedule_plan(BranchSchedule.of(f"random {percent} % of branches", drawn < percent / 100), job)


PLANS: dict[str, Callable[[SamplingJob], Iterable[CachePlan]]] = {
    "fora": partial(fora_plans, fora), "every-n": partial(fora_plans, every_n), "delta-dit": delta_plans,
    "t-gate": t_gate_plans, "first-block": first_block_plans, "steps": mask_plans, "ecad": ecad_plans}
CACHE_METHODS = {name: CacheMethod(name, title, PLANS[name], ready_made=PLANS[name] is ecad_plans)
                 for name, title in CACHE_TITLES.items()}
RANDOM = CacheMethod("random", "branches drawn at random, as a baseline of the same work", random_plans)


def method(name: str) -> CacheMethod:
    """The method of this name. Raises ValueError that names all of them."""
    if name not in (*CACHE_METHODS, RANDOM.name):
        raise ValueError(f"unknown cache method {name!r}; use {', '.join(CACHE_METHODS)}")
    return CACHE_METHODS.get(name, RANDOM)
