"""What reusing work costs in image quality: every cache on PixArt-mini's teacher, beside taking fewer steps.

Rows are kept in the folder as they are measured, with the images of the uncached run, so a stopped run goes on.
Times are processor times of a few prompts, all methods in turns.
"""
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from safetensors.torch import load_file, save_file

from pixart.accelerate import CacheChoice, SamplingJob
from pixart.checkpoint import read_config
from pixart.files.atomic import replacing
from pixart.mini import SHIPPED
from pixart.mini.evaluate import Instrument, write_results
from pixart.mini.judge import own_accuracy
from pixart.mini.measure.batches import BenchImages
from pixart.mini.measure.bench import Bench
from pixart.mini.measure.bootstrap import paired_difference, resamples
from pixart.mini.measure.cost import Cost, count, machine
from pixart.mini.measure.methods import TEACHER_METHOD, Sampled
from pixart.mini.measure.results import About, Measured, Row, read_measured
from pixart.mini.measure.tables import signed

from ..instruments.notes import Cell, Notes
from ..instruments.setting import Setting
from ..instruments.timing import turns

TABLE = "Caches on PixArt-mini's teacher, by judge B, beside fewer steps, every n-th step and branches at random"
STEPS = TEACHER_METHOD.steps
FULL = replace(TEACHER_METHOD, name=f"{STEPS} steps")
HALF = STEPS // 2
FIRST_ORDER = "ddim"        # in few steps it may be better than the usual sampler


@dataclass(frozen=True)
class Cached:
    """A cache as a method, and what is known about it beforehand."""

    method: Sampled
    budget: float           # of the baselines it stands beside
    less_work: float

    @property
    def equal_work(self) -> int:
        """Steps without a cache that are as much work."""
        return max(2, round(STEPS / self.less_work))


def fewer(steps: int, sampler: str = TEACHER_METHOD.sampler) -> Sampled:
    name = f"{steps} steps" + ("" if sampler == TEACHER_METHOD.sampler else f", {sampler.upper()}")
    return replace(TEACHER_METHOD, name=name, steps=steps, sampler=sampler)


def cached(name: str, budget: float) -> Cached:
    """Solved for a square image with a usual prompt, as `Sampled` does it."""
    return chosen(CacheChoice(name, budget), budget)


def scheduled(path: Path, budgets: Sequence[float]) -> Cached:
    """A schedule file for PixArt-mini, beside the baselines of the budget nearest to its work; the file's errors."""
    found = chosen(CacheChoice("ecad", file=path), 1.0)
    return replace(found, budget=min(budgets, key=lambda budget: abs(budget - found.less_work)))


def chosen(choice: CacheChoice, budget: float) -> Cached:
    """The cache with its reduction of work, for a square image of PixArt-mini."""
    config = read_config(SHIPPED.teacher)
    job = SamplingJob.of(config, STEPS, config.resolution, config.resolution, 32, guided=True)
    return Cached(replace(TEACHER_METHOD, name=choice.title, cache=choice), budget, choice.plan(job)[0].ratio(job))


class Quality:
    """One run of the command: what it measures with, and what it has measured so far."""

    def __init__(self, folder: Path, prompts: int, timed: int, batch: int, setting: Setting) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.setting = folder, setting
        self.bench = Bench.open(SHIPPED, prompts, device=setting.device, batch=batch)
        self.instrument = Instrument(self.bench, "b")
        self.timed = self.bench.first(min(timed, prompts))
        about = About(prompts, self.bench.prompts.seed, False, self.bench.prompts.digest, self.instrument.name,
                      own_accuracy(self.instrument.path)["all"])
        self.measured = Measured(about)
        if (folder / "rows.json").is_file():
            self.measured = read_measured(folder / "rows.json")
            if self.measured.about != about:
                raise ValueError("the folder holds results of other prompts or another judge; give another --out, or "
                                 f"the same --count: {folder}")

    def times(self, methods: Sequence[Sampled]) -> dict[str, float]:
        """Milliseconds of an image by name: those in the folder where it has all, else all measured in turns."""
        path = self.folder / "times.json"
        known: dict[str, float] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        if not {method.name for method in methods} <= known.keys():
            found = turns({method.name: partial(method.generate, self.timed) for method in methods}, self.setting)
            known |= {name: sorted(each)[len(each) // 2] / len(self.timed.prompts) for name, each in found.items()}
            with replacing(path) as beside:
                beside.write_text(json.dumps(known), encoding="utf-8")
        return known

    def row(self, method: Sampled, milliseconds: float) -> Row:
        """Of one method: that in the folder, or measured now."""
        for row in self.measured.rows:
            if row.name == method.name:
                return row
        passes, macs = count(method, self.bench)
        images = self.uncached() if method == FULL else method.generate(self.bench)
        cost = Cost(passes, macs, milliseconds, f"{machine(self.timed)}, in turns")
        against = None if method == FULL else (FULL.name, self.uncached())
        row = self.instrument.row(method.name, images, None, cost, against)
        replace(self.measured, rows=(*self.measured.rows, row)).save(self.folder / "rows.json")
        self.measured = read_measured(self.folder / "rows.json")        # rounded, as when the run goes on later
        return self.measured.rows[-1]

    def uncached(self) -> BenchImages:
        """Images of the run without a cache, generated once per folder."""
        path = self.folder / "uncached.safetensors"
        if not path.is_file():
            parts = FULL.generate(self.bench).parts
            with replacing(path) as beside:
                save_file({str(number): part.cpu().contiguous() for number, part in enumerate(parts)}, beside)
        kept = load_file(path)
        return BenchImages(tuple(kept[str(number)].to(self.setting.device) for number in range(len(kept))))


def measure(quality: Quality, names: Sequence[str], budgets: Sequence[float], files: Sequence[Path],
            full_size: Mapping[str, float], notes: Notes) -> list[Path]:
    """Measure all rows of the table; returns the files with all measures.

    files: of schedules for PixArt-mini. full_size: speed-up at full size by the cache's title.
    """
    caches = [cached(name, budget) for budget in budgets for name in with_baselines(names)]
    caches += [scheduled(path, budgets) for path in files]
    times = quality.times([FULL, fewer(HALF), *(cache.method for cache in caches)])
    step = (times[FULL.name] - times[fewer(HALF).name]) / (STEPS - HALF)
    rows, fewer_steps = {FULL.name: quality.row(FULL, times[FULL.name])}, dict[str, Row]()
    notes.row(TABLE, method=FULL.name, **shown(rows[FULL.name], times))
    for cache in caches:
        name = cache.method.name
        equal_time = equal_time_steps(times[name], times[FULL.name], step)
        for plain in (fewer(cache.equal_work), fewer(cache.equal_work, FIRST_ORDER), fewer(equal_time)):
            ms = times.get(plain.name, times[FULL.name] - step * (STEPS - plain.steps))
            fewer_steps[plain.name] = fewer_steps.get(plain.name) or quality.row(plain, ms)
        rows[name] = quality.row(cache.method, times[name])
    for cache in caches:
        name = cache.method.name
        equal_time = equal_time_steps(times[name], times[FULL.name], step)
        against = {"minus 20 steps": FULL.name, "minus steps of equal work": fewer(cache.equal_work).name,
                   "minus DDIM steps of equal work": fewer(cache.equal_work, FIRST_ORDER).name,
                   "minus steps of equal time": fewer(equal_time).name,
                   "minus every-n": CacheChoice("every-n", cache.budget).title,
                   "minus random": CacheChoice("random", cache.budget).title}
        known = rows | fewer_steps
        differences = {title: minus(rows[name], known[other]) for title, other in against.items() if other != name}
        notes.row(TABLE, method=name, **{"less work": cache.less_work, **shown(rows[name], times),
                                         "times as fast": times[FULL.name] / times[name],
                                         "times as fast, full size": full_size.get(name),
                                         "steps of equal work": cache.equal_work, "steps of equal time": equal_time,
                                         **differences})
    for name, row in fewer_steps.items():
        notes.row(TABLE, method=name, **{**shown(row, {name: row.cost.milliseconds if row.cost else 0.0}),
                                         "minus 20 steps": minus(row, rows[FULL.name])})
    return write_results(quality.measured, quality.folder, FULL.name)


def with_baselines(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*names, "every-n", "random"]))


def equal_time_steps(milliseconds: float, full: float, step: float) -> int:
    """Steps whose sampling takes as long, by the time of a step; at least 2, at most all."""
    return min(STEPS, max(2, round(STEPS - (full - milliseconds) / step))) if step > 0 else STEPS


def shown(row: Row, times: Mapping[str, float]) -> dict[str, Cell]:
    sums = {name: (values.sum() / weights.sum()).item() for name, (values, weights) in row.sums().items()}
    return {"all attributes %": 100 * row.accuracy["all"], "whole images %": 100 * row.accuracy["images"],
            "KID": sums["kid"], "PSNR dB": sums.get("psnr"), "GMACs": row.cost.macs / 1e9 if row.cost else None,
            "ms": times[row.name]}


def minus(row: Row, other: Row) -> str:
    """Difference of the whole images in points, with the paired interval of 95 %."""
    drawn = resamples(len(row.answers))
    return signed(paired_difference(row.sums()["images"], other.sums()["images"], drawn), 100, 1)
