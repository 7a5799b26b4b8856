"""Topic: samplings that reuse work from step to step, every method at every budget, beside all of the work, in turns.

Random weights have no quality; what a method costs in images is `--quality`.
"""
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from pixart.accelerate import CacheChoice, SamplingJob
from pixart.accelerate.budget import solve
from pixart.accelerate.ecad import read_ecad
from pixart.accelerate.methods import schedule_plan
from pixart.accelerate.plan import NOTHING_REUSED, CachePlan, plain_plan
from pixart.accelerate.schedule import BranchSchedule
from pixart.generation.pipeline import Pipeline
from pixart.generation.request import Request

from ..instruments.cases import Case
from ..instruments.networks import encoded, transformer
from ..instruments.notes import Notes
from ..instruments.setting import DTYPES, Setting
from ..instruments.timing import paired_ratio, turns
from .cache_dit import measure as beside_cache_dit
from .wish import Wish, config_for, pixels

CACHED = "Samplings with work reused, in turns with all of it"
AIMS = {"ecad ours_fast": 1.9, "delta-dit 2x": 1.5}          # times as fast as our own sampling


def cases(setting: Setting, wish: Wish) -> dict[str, Case]:
    return {"caches": partial(measure, wish), "caches beside cache-dit": partial(beside_cache_dit, wish)}


def measure(wish: Wish, setting: Setting, notes: Notes) -> None:
    """Samplings of one image with guidance, both prompts in one pass."""
    (side, name), steps = wish.main, wish.cached_steps
    config, here = config_for(side, setting), pixels(side, setting)
    model = transformer(config, DTYPES[name], setting.device)
    job = SamplingJob.of(config, steps, here, here, wish.tokens, guided=True)
    request = Request(("",), "", here, here, "dpm", steps)
    text, null = encoded(config, [wish.tokens]), encoded(config, [wish.tokens], seed=5)

    def sampled(plan: CachePlan) -> object:
        return Pipeline.of(model).sample(request, text, null, policies=plan.make())
    plans = {"": plain_plan(job), **budgeted(wish, job), **scheduled(wish, job)}
    runs: dict[str, Callable[[], object]] = {title: partial(sampled, plan) for title, plan in plans.items()}
    Pipeline.of(model).sample(replace(request, steps=1), text, null)        # warms up as much as a whole one
    found = turns(runs, setting, warmed=True)
    for title, plan in plans.items():
        gain = paired_ratio(found[""], found[title])
        notes.row(CACHED, px=side, dtype=name, blocks=config.depth, steps=steps, method=title or NOTHING_REUSED,
                  setting=plan.setting, **{"less work": plan.ratio(job), "ms": statistics.median(found[title]),
                                           "times as fast": gain})
        if title in AIMS and not setting.tiny:
            notes.aim(f"{title} / our {steps} steps, {side} px, {name}, {config.depth} blocks", gain, AIMS[title], "x",
                      at_most=False)


def budgeted(wish: Wish, job: SamplingJob) -> dict[str, CachePlan]:
    """Every method at every budget."""
    return {CacheChoice(name, budget).title: solve(name, budget, job).plan for budget in wish.budgets
            for name in wish.methods}


def scheduled(wish: Wish, job: SamplingJob) -> dict[str, CachePlan]:
    """The schedule files, stretched to the depth that is measured, by the names that `--quality` has for them."""
    found = {}
    for path in wish.ecad:
        schedule = read_ecad(path).schedule
        if schedule.steps != job.steps:
            raise ValueError(f"the schedule is for {schedule.steps} steps, asked for are {job.steps} "
                             f"(--cached-steps): {path}")
        found[CacheChoice("ecad", file=path).title] = schedule_plan(stretched(schedule, job.config.depth), job)
    return found


def stretched(schedule: BranchSchedule, depth: int) -> BranchSchedule:
    """The schedule for `depth` blocks: evenly spread ones of a deeper one, or each several times of a shallower."""
    if depth == schedule.depth:
        return schedule
    chosen = [(2 * i + 1) * schedule.depth // (2 * depth) for i in range(depth)]
    return BranchSchedule.of(f"{schedule.name}, {schedule.depth} blocks stretched to {depth}",
                             schedule.tensor()[:, chosen])
