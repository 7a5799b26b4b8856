"""python -m pixart mini: rebuild PixArt-mini, measure ways of drawing with it, find out where it fails."""
import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..commands.places import require_parent
from . import SHIPPED, Files

if TYPE_CHECKING:
    from .measure.batches import BenchPictures
    from .measure.prompts import Prompts

SHEET_ROWS = 10      # rows of a contact sheet


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `mini` and its tasks to the commands of the program."""
    mini = commands.add_parser("mini", help="rebuild, measure or diagnose PixArt-mini")
    tasks = mini.add_subparsers(dest="task", required=True)
    _add_build(tasks)
    _add_evaluate(tasks)
    compare = tasks.add_parser("compare", help="put results of `evaluate` into one table, with paired differences")
    compare.add_argument("results", type=Path, nargs="+", metavar="JSON", help="results.json of `evaluate --out`")
    compare.add_argument("--base", help="row that the others are compared with (default: the first that was drawn)")
    compare.add_argument("--out", type=Path, help="folder for results.json, results.md and results.png of all of them")
    _add_diagnose(tasks)


def _add_build(tasks: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    build = tasks.add_parser("build", help="train every part from nothing; goes on where it was stopped")
    data = tasks.add_parser("data", help="only the training data, with the small networks it takes; then use train")
    for command in (build, data):
        command.add_argument("--work", type=Path, required=True, help="folder for prepared data and training states")
        command.add_argument("--device", help="cpu, cuda, mps (default: the best there is)")
    build.add_argument("--weights", type=Path, required=True, help="folder the weights go to")
    build.add_argument("--measure", type=int, default=500, metavar="N", help="held-out sentences that the result is "
                       "measured on at the end; 0 for none (default: 500)")
    build.add_argument("--minutes", type=float, help="how long all of it may take, measuring included; the small "
                       "networks take their own steps, the transformers what is left (default: the steps of the "
                       "recipe)")
    build.add_argument("--stages", help="only these, by commas: autoencoder, text, judge, judge_a, teacher, student, "
                       "control, tdm, dmd (default: all)")
    data.add_argument("--weights", type=Path, default=SHIPPED.root, help="folder of the small networks; what it lacks "
                      "is trained (default: those in the repository)")


def _add_evaluate(tasks: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    evaluate = tasks.add_parser(
        "evaluate", help="measure ways of drawing on held-out sentences",
        description="Draw held-out sentences and measure the pictures: what a judge network reads back, FID and KID in "
                    "its features, diversity, cost; with --reference also PSNR, SSIM and judge-LPIPS. Prints tables.")
    _shared(evaluate, 1000)
    evaluate.add_argument("--method", action="append", default=[], metavar="M",
                          help="[NAME=]WEIGHTS[+LORA]:SAMPLER[:STEPS[:GUIDANCE]][@POLICY], WEIGHTS being teacher, "
                          "student or a file, POLICY a cache (METHOD[=BUDGET], or a schedule file of ECAD) or a file "
                          "of feedback (ILF): teacher:dpm:20:2.5, student:lcm:4, teacher:dpm:20:2.5@fora=2x; may be "
                          "given several times (default: the teacher, and the student in 4, 2 and 1 steps)")
    evaluate.add_argument("--student", type=Path, nargs="+", default=[], metavar="FILE",
                          help="few-step students to measure, in 4, 2 and 1 steps")
    evaluate.add_argument("--lora", type=Path, nargs="+", default=[], metavar="FILE",
                          help="LCM-LoRAs to measure, on the teacher, in 4, 2 and 1 steps")
    evaluate.add_argument("--cache", action="append", default=[], metavar="CACHE",
                          help="METHOD[=BUDGET] (fora=2x) or a schedule file of ECAD: measure the teacher with it too; "
                          "may be given several times")
    evaluate.add_argument("--control", action="store_true", help="measure the ControlNet instead, at five strengths")
    evaluate.add_argument("--reference", metavar="M",
                          help="way of drawing that the pictures are compared with one by one")
    evaluate.add_argument("--diversity", type=int, metavar="N", help="sentences that diversity is measured "
                          "on, by three more pictures each; 0 for none (default: 50)")
    evaluate.add_argument("--probe", type=int, metavar="N", help="pictures whose multiplications are "
                          "counted; more than one for methods that work more on some pictures (default: 1)")
    evaluate.add_argument("--out", type=Path, metavar="DIR", help="folder for results.json, results.md, results.png")
    evaluate.add_argument("--sheet", type=Path, metavar="PNG", help="contact sheet to draw")
    evaluate.add_argument("--edge-sheet", type=Path, metavar="PNG",
                          help="the same of one part of each picture, four times as large")


def _add_diagnose(tasks: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    diagnose = tasks.add_parser(
        "diagnose", help="find out where the teacher loses what the sentence says",
        description="Four trials: real pictures noised to a timestep and finished by the teacher; the autoencoder "
                    "alone; a probe of the text features; the loss by timestep. Prints tables.")
    _shared(diagnose, 200)
    diagnose.add_argument("--guidance", type=float, default=2.5,
                          help="guidance scale of the finishing (default: 2.5)")
    diagnose.add_argument("--out", type=Path, metavar="DIR",
                          help="folder for diagnosis.json, diagnosis.md, diagnosis.png")


def _shared(command: argparse.ArgumentParser, count: int) -> None:
    command.add_argument("--weights", type=Path, default=SHIPPED.root, help="folder of the weights (default: shipped)")
    command.add_argument("--count", type=int, default=count, help=f"held-out sentences (default: {count})")
    command.add_argument("--seed", type=int, default=7, help="which sentences (default: 7)")
    command.add_argument("--crowded", action="store_true", help="scenes of three to five things, with long captions")
    command.add_argument("--device", help="cpu, cuda, mps (default: the best there is)")
    command.add_argument("--batch", type=int, help="pictures at a time (default: 100, on a GPU 500)")
    command.add_argument("--judge", choices=("a", "b"), default="b",
                         help="network that reads the pictures: b only measures, a may have helped in training")


def run(args: argparse.Namespace) -> None:
    """Do the task that `args` of `add_parser` name, and print what came out."""
    {"build": run_build, "data": run_data, "evaluate": run_evaluate, "compare": run_compare,
     "diagnose": run_diagnose}[args.task](args)


def run_build(args: argparse.Namespace) -> None:
    from ..device import best_device
    from .recipe import STAGES, build_mini
    files, device = Files(args.weights), args.device or best_device()
    stages = tuple(args.stages.split(",")) if args.stages else STAGES
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise ValueError(f"--stages {unknown[0]} is unknown; use {', '.join(STAGES)}")
    build_mini(args.work, files, device=device, minutes=args.minutes, stages=stages)
    if args.measure:
        from .evaluate import evaluate
        print(evaluate(args.measure, files=files, device=device, batch=batch_for(device), diverse=0).table())


def run_data(args: argparse.Namespace) -> None:
    from ..device import best_device
    from .recipe import prepare_data
    prepare_data(args.work, Files(args.weights), device=args.device or best_device())


def run_evaluate(args: argparse.Namespace) -> None:
    from .evaluate import DIVERSE, USUAL_METHODS, evaluate, write_results
    from .measure.methods import few_step, method_of
    for path in filter(None, (args.out, args.sheet, args.edge_sheet)):
        require_parent(path)
    if args.control:
        run_control(args)
        return
    cached = [method_of(f"teacher:dpm:20:2.5@{cache}") for cache in args.cache]
    methods = [*map(method_of, args.method), *few_step(args.student, args.lora), *cached] or USUAL_METHODS
    found = evaluate(args.count, args.seed, Files(args.weights), methods, *where(args), args.crowded, args.judge,
                     method_of(args.reference) if args.reference else None,
                     DIVERSE if args.diversity is None else args.diversity, 1 if args.probe is None else args.probe)
    print(found.table())
    if args.out:
        print("\n".join(map(str, write_results(found.measured, args.out))))
    draw_sheets(args, found.pictures, found.prompts)


def run_control(args: argparse.Namespace) -> None:
    from .agreement import agreement_table, evaluate_control
    for option in ("method", "cache", "student", "lora", "reference", "crowded", "diversity", "probe", "out"):
        value = getattr(args, option)
        if value is not None and value is not False and value != []:        # 0 is a wish too
            raise ValueError(f"--{option} has no effect with --control; leave one of the two out")
    rows, pictures, prompts = evaluate_control(args.count, args.seed, Files(args.weights), None, *where(args),
                                               args.judge)
    print(agreement_table(rows))
    draw_sheets(args, pictures, prompts)


def run_compare(args: argparse.Namespace) -> None:
    from .evaluate import write_results
    from .measure.results import REAL, merged, read_measured
    from .measure.tables import differences, results_table
    if args.out:
        require_parent(args.out)
    measured = merged([(str(path), read_measured(path)) for path in args.results])
    drawn = [row.name for row in measured.rows if row.name != REAL]
    if not drawn:
        raise ValueError(f"no way of drawing was measured, only real pictures: {args.results[0]}")
    base = measured.row(args.base or drawn[0]).name
    print(results_table(measured), differences(measured, base), sep="\n\n")
    if args.out:
        print("\n".join(map(str, write_results(measured, args.out, base))))


def run_diagnose(args: argparse.Namespace) -> None:
    from .diagnose import diagnose, tables, write_diagnosis
    if args.out:
        require_parent(args.out)
    device, batch = where(args)
    found = diagnose(args.count, args.seed, Files(args.weights), device, batch, args.judge, args.guidance,
                     args.crowded)
    print(tables(found))
    if args.out:
        print("\n".join(map(str, write_diagnosis(found, args.out))))


def draw_sheets(args: argparse.Namespace, pictures: "Mapping[str, BenchPictures]", prompts: "Prompts") -> None:
    from .measure.sheets import edge_sheet, method_sheet
    rows = range(min(SHEET_ROWS, args.count))
    for path, sheet in ((args.sheet, method_sheet), (args.edge_sheet, edge_sheet)):
        if path:
            sheet(pictures, prompts, rows).save(path)
            print(path)


def where(args: argparse.Namespace) -> tuple[str, int]:
    """Device and pictures at a time."""
    from ..device import best_device
    device = args.device or best_device()
    return device, batch_for(device) if args.batch is None else args.batch


def batch_for(device: str) -> int:
    """Pictures at a time that fill the device."""
    return 100 if device == "cpu" else 500
