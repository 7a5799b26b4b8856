"""Search for schedules by evolution: NSGA-II with ECAD's published operators (arXiv 2506.15682, section 3)."""
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files.atomic import replacing
from ..weights import CheckpointError, checked_entries, parse_json
from ..weights.settings import number, text
from .schedule import BRANCHES, BranchSchedule

logger = logging.getLogger(__name__)

CROSSOVER, POINTS, MUTATION = 0.9, 4, 0.05      # ECAD's: share of pairs crossed, at how many points, share mutated
Loss = Callable[[BranchSchedule], float]        # the lower the better the images
Work = Callable[[BranchSchedule], float]        # the lower the faster


@dataclass(frozen=True)
class Candidate:
    """A schedule that was tried."""

    schedule: BranchSchedule
    loss: float
    work: float


class Trials:
    """What was tried so far, in a file of JSON lines: a search that is started again does not try it again."""

    def __init__(self, path: Path, steps: int, depth: int, about: str) -> None:
        """about: what the losses depend on; trials of something else are refused with ValueError."""
        self.path, self.shape, self.about = path, (steps, depth, len(BRANCHES)), about
        self.found: dict[str, tuple[float, float]] = {}
        if path.is_file():
            self._read()
        else:
            with replacing(path) as beside:         # a kill leaves no file, or one with its first line
                beside.write_text(json.dumps({"about": about, "shape": self.shape}) + "\n", encoding="utf-8")

    def _read(self) -> None:
        first, *lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines() or ["{}"]
        head = parse_json(first, self.path, "line 1")
        if head != {"about": self.about, "shape": list(self.shape)}:
            raise ValueError(f"the trials are of another search ({head.get('about')}; this one: {self.about}); give "
                             f"another folder: {self.path}")
        for place, line in enumerate(lines, 2):
            if line.endswith("}"):          # the last one may be cut off by a kill
                bits, values = self._trial(parse_json(line, self.path, f"line {place}"), f"line {place}")
                self.found[bits] = values

    def _trial(self, entry: dict[str, Any], where: str) -> tuple[str, tuple[float, float]]:
        known = checked_entries(entry, {"bits": text, "loss": number(-1e30, 1e30), "work": number(0, 1e30)}, self.path,
                                where)
        bits = known.get("bits", "")
        if len(known) < 3 or len(bits) != math.prod(self.shape) or set(bits) - {"0", "1"}:
            raise CheckpointError(self.path, f"{where} is not a trial of {' x '.join(map(str, self.shape))} bits",
                                  "bits, loss and work", "Delete this line to try the schedule again.")
        return bits, (known["loss"], known["work"])

    def try_out(self, bits: Tensor, loss: Loss, work: Work) -> tuple[float, float]:
        """Loss and work of bits (steps * depth * 3,), from the file or tried now."""
        name = "".join("1" if bit else "0" for bit in bits.tolist())
        if name not in self.found:
            schedule = self.schedule(name)
            self.found[name] = (loss(schedule), work(schedule))
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n" * (not self._ends_well()) + json.dumps(
                    {"loss": self.found[name][0], "work": self.found[name][1], "bits": name}) + "\n")
        return self.found[name]

    def _ends_well(self) -> bool:
        return self.path.read_bytes()[-1:] == b"\n"

    def schedule(self, bits: str, name: str = "candidate") -> BranchSchedule:
        return BranchSchedule.of(name, torch.tensor([bit == "1" for bit in bits]).view(self.shape))

    def front(self) -> list[Candidate]:
        """The Pareto front: those that no other beats in both, fastest first."""
        best: list[Candidate] = []
        for bits, (loss, work) in sorted(self.found.items(), key=lambda item: (item[1][1], item[1][0])):
            if not best or loss < best[-1].loss:
                best.append(Candidate(self.schedule(bits), loss, work))
        return best


def search_schedules(trials: Trials, seeds: Sequence[BranchSchedule], loss: Loss, work: Work, population: int = 72,
                     generations: int = 50, seed: int = 0,
                     told: Callable[[int], None] | None = None) -> list[Candidate]:
    """The Pareto front of all trials after `generations`; reproducible with the same seed.

    seeds: at most `population` of them begin, the rest are random bits. told(generation) is called after each. Raises
    ImportError, saying what to install, without pymoo.
    """
    require_search(population, generations)
    evolve(trials, beginning(trials, seeds, population, seed), loss, work, generations, seed, told)
    return trials.front()


def require_search(population: int, generations: int) -> None:
    """Refuse, before any image is generated for it, a search that cannot run. Raises ValueError and ImportError."""
    if population < 4 or generations < 1:
        raise ValueError(f"a population of {population} for {generations} generations asked for; at least 4 and 1 are "
                         "possible")
    if find_spec("pymoo") is None:
        raise ImportError("the search needs pymoo; install it with: pip install 'pixart-delta[ecad]'")


def beginning(trials: Trials, seeds: Sequence[BranchSchedule], population: int, seed: int) -> Tensor:
    """The first population, (population, bits) bool: seeds, then random bits."""
    count = torch.Size(trials.shape).numel()
    drawn = torch.rand(population, count, generator=torch.Generator().manual_seed(seed)) < 0.5
    for row, schedule in enumerate(list(seeds)[:population]):
        drawn[row] = schedule.tensor().flatten()
    return drawn


def evolve(trials: Trials, start: Tensor, loss: Loss, work: Work, generations: int, seed: int,
           told: Callable[[int], None] | None) -> None:
    """Run pymoo's NSGA-II; everything it tries goes through `trials`."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import ElementwiseProblem
    from pymoo.operators.crossover.pntx import PointCrossover
    from pymoo.operators.mutation.bitflip import BitflipMutation
    from pymoo.optimize import minimize

    class Schedules(ElementwiseProblem):
        def __init__(self) -> None:
            super().__init__(n_var=start.shape[1], n_obj=2, n_ieq_constr=1, xl=False, xu=True, vtype=bool)

        def _evaluate(self, x: Any, out: dict, *args: Any, **kwargs: Any) -> None:
            bits = torch.as_tensor(x).bool()
            out["F"] = list(trials.try_out(bits, loss, work))
            out["G"] = [1.0 - float((~bits).sum())]         # something must be reused

    def tell(algorithm: Any) -> None:
        logger.info("generation %d: %d schedules tried", algorithm.n_gen, len(trials.found))
        if told is not None:
            told(algorithm.n_gen)

    algorithm = NSGA2(pop_size=len(start), sampling=start.numpy(), eliminate_duplicates=True,
                      crossover=PointCrossover(prob=CROSSOVER, n_points=POINTS),
                      mutation=BitflipMutation(prob=MUTATION))
    minimize(Schedules(), algorithm, ("n_gen", generations), seed=seed, callback=tell)
