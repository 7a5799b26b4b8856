"""python -m pixart ecad: search for schedules, and look at files of them."""
import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..files.claim import claimed
from .places import require_folder_place

if TYPE_CHECKING:
    from ..mini.schedule_search import Fitness

OWN_NAME = re.compile(r"\d+\.\d\dx\.json")         # of a schedule of the front


def add_options(command: argparse.ArgumentParser) -> None:
    tasks = command.add_subparsers(dest="task", required=True)
    show = tasks.add_parser("show", help="say what a schedule file computes, step by step")
    show.add_argument("file", type=Path, metavar="JSON", help="schedule file of ECAD or from a search")
    search = tasks.add_parser(
        "search", help="search on PixArt-mini",
        description="Search for cache schedules on PixArt-mini with NSGA-II: quality by judge A against counted work. "
                    "Resumes an interrupted search. Writes trials.jsonl, front/*.json and front.png.")
    search.add_argument("--work", type=Path, required=True, metavar="DIR", help="output folder")
    for name, default, text in (("scenes", 50, "prompts; more prompts are better than more seeds"),
                                ("seeds", 1, "images per prompt"), ("population", 72, "schedules per generation"),
                                ("generations", 50, "number of generations"), ("seed", 0, "seed of the search")):
        search.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{text} (default: {default})")
    search.add_argument("--device", default="cpu", help="cpu, cuda, mps (default: cpu)")


def run(args: argparse.Namespace) -> None:
    """Do the task that `args` name."""
    {"show": run_show, "search": run_search}[args.task](args)


def run_show(args: argparse.Namespace) -> None:
    from ..accelerate.ecad import read_ecad
    from ..accelerate.schedule import BRANCHES
    found = read_ecad(args.file)
    schedule, computed = found.schedule, found.schedule.computed()
    gate = "" if found.gate is None else f", guidance and cross-attention end at step {found.gate}"
    print(f"{schedule.name}: {schedule.steps} steps, {schedule.depth} blocks, {int(computed.sum())} of "
          f"{computed.numel()} branches computed{gate}")
    print("step " + "".join(f"{name:>12}" for name in BRANCHES))
    for step, counts in enumerate(computed.sum(1).tolist()):
        print(f"{step:4} " + "".join(f"{count:12}" for count in counts))


def run_search(args: argparse.Namespace) -> None:
    from ..accelerate.search import require_search
    from ..device import checked_device
    from ..mini.schedule_search import Fitness
    for name in ("scenes", "seeds"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} is {getattr(args, name)}; at least 1 is needed")
    require_search(args.population, args.generations)
    require_folder_place(args.work, "--work")
    args.work.mkdir(parents=True, exist_ok=True)
    fitness = Fitness(args.scenes, args.seeds, device=str(checked_device(args.device)))
    with claimed(args.work):
        search(args, fitness)


def search(args: argparse.Namespace, fitness: "Fitness") -> None:
    """All generations that are left, and the files of the front."""
    from ..accelerate.schedule import BranchSchedule
    from ..accelerate.search import Trials, search_schedules
    from ..accelerate.search_plot import plot_front
    from ..accelerate.seeds import hand_made

    steps, depth = fitness.job.steps, fitness.config.depth
    trials = Trials(args.work / "trials.jsonl", steps, depth, fitness.about)
    full = BranchSchedule.full(steps, depth)
    plain = (fitness.loss(full), fitness.work(full))

    def told(generation: int) -> None:
        plot_front(trials, plain, args.work / "front.png", "mean -log likelihood of the stated facts, judge A")

    front = search_schedules(trials, hand_made(steps, depth), fitness.loss, fitness.work, args.population,
                             args.generations, args.seed, told)
    write_front(args.work / "front", front, plain)


def write_front(folder: Path, front: list, plain: tuple[float, float]) -> None:
    """One schedule file each, and a line about each."""
    from dataclasses import replace

    from ..accelerate.ecad import write_ecad
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.json"):
        if OWN_NAME.fullmatch(old.name):
            old.unlink()
    print(f"nothing reused: loss {plain[0]:.4f}")
    for one in front:
        name = f"{plain[1] / one.work:.2f}x"
        path = write_ecad(folder / f"{name}.json", replace(one.schedule, name=f"PixArt-mini {name}"))
        print(f"{name} less work: loss {one.loss:.4f}, {path}")
