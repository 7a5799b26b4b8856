"""What a user asks for: a method with a budget, or a schedule file, and in which part of the sampling."""
from dataclasses import dataclass
from pathlib import Path

from .budget import budget_of, from_file, solve
from .cost import macs_text
from .methods import method
from .plan import CachePlan, SamplingJob
from .schedule import steps_within


@dataclass(frozen=True)
class CacheChoice:
    """budget: how many times less work, 1 for all of it; with a `file` of ECAD its schedule decides instead.

    start and end: fractions of the steps between which anything may be reused. ValueError for values out of range.
    """

    method: str
    budget: float = 2.0
    file: Path | None = None
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        method(self.method)
        steps_within(1, self.start, self.end)
        if not self.budget >= 1:
            raise ValueError(f"the budget is {self.budget:g}; it must be 1 (all of the work) or more")
        if self.file is not None and self.method != "ecad":
            raise ValueError(f"a schedule file is for the method ecad, not for {self.method}")

    def plan(self, job: SamplingJob) -> tuple[CachePlan, str]:
        """The setting for a job, and in one line what it is and what it saves. Raises what the solver raises."""
        job = job.within(self.start, self.end)
        if self.file is not None:
            plan = from_file(self.file, job)
            return plan, plan_summary(plan, job)
        solved = solve(self.method, self.budget, job)
        return solved.plan, solved.notice or plan_summary(solved.plan, job)

    @property
    def title(self) -> str:
        """A short name."""
        return f"{self.method} {self.budget:g}x" if self.file is None else f"ecad {self.file.stem}"


def plan_summary(plan: CachePlan, job: SamplingJob) -> str:
    """"FORA, every 2: 1.82x less work (47.1 of 85.6 TMACs per image)"."""
    return f"{plan.setting}: {plan.ratio(job):.2f}x less work ({macs_text(plan.work(job), job.plain)} per image)"


def choice_of(text: str) -> CacheChoice:
    """METHOD[=BUDGET] or a schedule file: "fora=2x", "ours_fast.json". Raises ValueError for anything else."""
    if text.endswith(".json"):
        return CacheChoice("ecad", file=Path(text))
    name, _, budget = text.partition("=")
    return CacheChoice(name, budget_of(budget or "2x"))
