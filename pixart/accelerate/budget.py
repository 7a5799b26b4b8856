"""From a wanted speed to a setting, before anything is sampled, by counted work."""
import math
import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path

from .ecad import read_ecad
from .methods import gated_plan, method, schedule_plan
from .plan import CachePlan, SamplingJob, plain_plan

EXACT, NEAR = math.log(1.02), math.log(1.05)    # off by less: the budget is met; no notice is given


@dataclass(frozen=True)
class Solved:
    """The setting of a method that comes nearest to a budget."""

    plan: CachePlan
    budget: float
    ratio: float        # reached: how many times less work

    @property
    def off(self) -> float:
        """Distance from the budget, in logarithms of work."""
        return abs(math.log(self.ratio / self.budget))

    @property
    def notice(self) -> str | None:
        """What to say where no setting reaches the budget."""
        if self.off < NEAR:
            return None
        return f"no setting reaches {self.budget:g}x; the nearest is {self.ratio:.2f}x ({self.plan.setting})"


def budget_of(text: str) -> float:
    """"2x" or "2" -> 2.0: how many times less work. ValueError for anything else and below 1."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*[x×]?\s*", text, re.IGNORECASE)
    value = float(found[1]) if found else math.nan
    if not value >= 1:
        raise ValueError(f"the budget {text!r} is not a speed-up; write 2x for half of the work, 1x for all of it")
    return value


@lru_cache(maxsize=64)
def solve(name: str, budget: float, job: SamplingJob) -> Solved:
    """The first setting of method `name` that is within 2 % of the budget in counted work, else the nearest.

    Settings are tried in the order of the method's list, which begins with those that compute whole steps most often.
    Raises ValueError for an unknown method, and where no ready-made schedule is for this depth and number of steps.
    """
    best: Solved | None = None
    chosen = method(name)
    # Of ready-made schedules the nearest is taken, however far from the budget it is.
    first = [] if chosen.ready_made and budget > 1 else [plain_plan(job)]
    for plan in chain(first, chosen.plans(job)):
        tried = Solved(plan, budget, plan.ratio(job))
        if tried.off < EXACT:
            return tried
        if best is None or tried.off < best.off:
            best = tried
    if best is None:
        raise ValueError(f"no schedule for {job.config.depth} blocks and {job.steps} steps comes with the package; "
                         "give a schedule file, or choose another method")
    return best


def from_file(path: Path | str, job: SamplingJob) -> CachePlan:
    """A schedule file of ECAD for this job. Raises ValueError where it was made for another depth or step count."""
    found = read_ecad(path)
    made, have = (found.schedule.depth, found.schedule.steps), (job.config.depth, job.steps)
    if made[0] != have[0]:
        raise ValueError(f"the schedule is for {made[0]} blocks, this model has {have[0]}; use one that was made for "
                         f"this model: {path}")
    if made[1] != have[1]:
        raise ValueError(f"the schedule is for {made[1]} steps, this sampling takes {have[1]}; sample in {made[1]} "
                         f"steps, or choose a method with a budget: {path}")
    if found.gate is None:
        return schedule_plan(found.schedule, job)
    return gated_plan(found.schedule, found.gate, job, ("cross_attn",))
