"""python -m pixart mini: rebuild PixArt-mini, evaluate methods with it, find out where it fails."""
import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..commands.numbers import finite_number, positive_number, whole_from_zero
from ..commands.places import require_file_place, require_folder_place, require_parent
from . import SHIPPED, Files

if TYPE_CHECKING:
    from .measure.batches import BenchImages
    from .measure.prompts import Prompts

SHEET_ROWS = 10      # rows of a contact sheet


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `mini` and its tasks to the commands of the program."""
    mini = commands.add_parser("mini", help="train, evaluate or diagnose PixArt-mini")
    tasks = mini.add_subparsers(dest="task", required=True)
    _add_build(tasks)
    _add_evaluate(tasks)
    compare = tasks.add_parser("compare", help="combine results of `evaluate` into one table, with paired differences")
    compare.add_argument("results", type=Path, nargs="+", metavar="JSON", help="results.json of `evaluate --out`")
    compare.add_argument("--base", help="row that the others are compared with (default: the first)")
    compare.add_argument("--out", type=Path, help="folder for the combined results.json, results.md and results.png")
    _add_diagnose(tasks)


def _add_build(tasks: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    build = tasks.add_parser("build", help="train every part from scratch; resumes")
    data = tasks.add_parser("data", help="make the training data only, for `train`")
    for command in (build, data):
        command.add_argument("--work", type=Path, required=True, help="folder for prepared data and training states")
        command.add_argument("--device", help="cpu, cuda or mps (default: the best available)")
    build.add_argument("--weights", type=Path, required=True, help="output folder for the weights")
    build.add_argument("--measure", type=whole_from_zero, default=500, metavar="N",
                       help="held-out prompts for the final evaluation; 0 for none (default: 500)")
    build.add_argument("--minutes", type=positive_number, help="time limit for everything, including evaluation; the "
                                                               "small networks take their usual steps, the "
                                                               "transformers the remaining time (default: the steps "
                                                               "of the recipe)")
    build.add_argument("--stages", help="only these stages, separated by commas: autoencoder, text, judge, judge_a, "
                                        "teacher, student, control, tdm, dmd (default: all)")
    data.add_argument("--weights", type=Path, default=SHIPPED.root, help="folder of the small networks; missing ones "
                                                                         "are trained (default: those in the "
                                                                         "repository)")


def _add_evaluate(tasks: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    evaluate = tasks.add_parser(
        "evaluate", help="evaluate methods on held-out prompts",
        description="Generate images for held-out prompts and evaluate them: attributes read by a judge network, FID "
                    "and KID in its features, diversity, cost; with --reference also PSNR, SSIM and judge-LPIPS. "
                    "Prints tables. See docs/evaluation.md.")
    _shared(evaluate, 1000)
    evaluate.add_argument("--method", action="append", default=[], metavar="M",
                          help="[NAME=]WEIGHTS[+LORA]:SAMPLER[:STEPS[:GUIDANCE]][@POLICY], WEIGHTS being teacher, "
                          "student or a file, POLICY a cache (METHOD[=BUDGET], or a schedule file of ECAD) or a file "
                          "of feedback (ILF): teacher:dpm:20:2.5, student:lcm:4, teacher:dpm:20:2.5@fora=2x; may be "
                          "given several times (default: the teacher, and the student in 4, 2 and 1 steps)")
    evaluate.add_argument("--student", type=Path, nargs="+", default=[], metavar="FILE",
                          help="LCM students to evaluate in 4, 2 and 1 steps")
    evaluate.add_argument("--lora", type=Path, nargs="+", default=[], metavar="FILE",
                          help="LCM-LoRAs to evaluate on the teacher in 4, 2 and 1 steps")
    evaluate.add_argument("--cache", action="append", default=[], metavar="CACHE",
                          help="METHOD[=BUDGET] (fora=2x) or an ECAD schedule: also evaluate the teacher with it; "
                               "may be repeated")
    evaluate.add_argument("--control", action="store_true", help="evaluate the ControlNet instead, at five strengths")
    evaluate.add_argument("--reference", metavar="M",
                          help="method whose images the others are compared with, one by one")
    evaluate.add_argument("--diversity", type=int, metavar="N", help="prompts for measuring diversity, with three "
                                                                     "more images each; 0 for none (default: 50)")
    evaluate.add_argument("--probe", type=int, metavar="N", help="images whose multiplications are counted; use more "
                                                                 "if the work differs between images (default: 1)")
    evaluate.add_argument("--out", type=Path, metavar="DIR", help="folder for results.json, results.md, results.png")
    evaluate.add_argument("--sheet", type=Path, metavar="PNG", help="write a contact sheet")
    evaluate.add_argument("--edge-sheet", type=Path, metavar="PNG",
                          help="write a contact sheet of details, four times as large")


def _add_diagnose(tasks: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    diagnose = tasks.add_parser(
        "diagnose", help="find out where the base model loses information",
        description="Four experiments: real images noised to a timestep and completed by the base model; the "
                    "autoencoder alone; a probe of the text features; the loss by timestep. Prints tables.")
    _shared(diagnose, 200)
    diagnose.add_argument("--guidance", type=finite_number, default=2.5,
                          help="guidance scale of the completion (default: 2.5)")
    diagnose.add_argument("--out", type=Path, metavar="DIR",
                          help="folder for diagnosis.json, diagnosis.md, diagnosis.png")


def _shared(command: argparse.ArgumentParser, count: int) -> None:
    command.add_argument("--weights", type=Path, default=SHIPPED.root, help="folder of the weights (default: shipped)")
    command.add_argument("--count", type=int, default=count, help=f"held-out prompts (default: {count})")
    command.add_argument("--seed", type=int, default=7, help="selects the prompts (default: 7)")
    command.add_argument("--crowded", action="store_true", help="scenes of three to five objects, with long captions")
    command.add_argument("--device", help="cpu, cuda or mps (default: the best available)")
    command.add_argument("--batch", type=int, help="images at a time (default: 100, on a GPU 500)")
    command.add_argument("--judge", choices=("a", "b"), default="b",
                         help="network that reads the images: b is used only for evaluation, a may be used in "
                              "training")


def run(args: argparse.Namespace) -> None:
    """Do the task that `args` of `add_parser` name, and print what came out."""
    {"build": run_build, "data": run_data, "evaluate": run_evaluate, "compare": run_compare,
     "diagnose": run_diagnose}[args.task](args)


def run_build(args: argparse.Namespace) -> None:
    from .recipe import STAGES, build_mini
    files, device = Files(args.weights), device_of(args)
    stages = tuple(args.stages.split(",")) if args.stages else STAGES
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise ValueError(f"--stages {unknown[0]} is unknown; use {', '.join(STAGES)}")
    build_mini(args.work, files, device=device, minutes=args.minutes, stages=stages)
    if args.measure:
        from .evaluate import evaluate
        print(evaluate(args.measure, files=files, device=device, batch=batch_for(device), diverse=0).table())


def run_data(args: argparse.Namespace) -> None:
    from .recipe import prepare_data
    prepare_data(args.work, Files(args.weights), device=device_of(args))


def run_evaluate(args: argparse.Namespace) -> None:
    from .evaluate import DIVERSE, USUAL_METHODS, evaluate, write_results
    from .measure.methods import few_step, method_of
    require_places(args)
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
    save_sheets(args, found.images, found.prompts)


def require_results_place(out: Path | None) -> None:
    """Refuse a folder of results that could not be made or written to."""
    if out is not None:
        require_parent(out)
        require_folder_place(out)


def require_places(args: argparse.Namespace) -> None:
    """Refuse names of results that could not be written, before anything is measured."""
    from ..files.images import format_of
    require_results_place(args.out)
    for path in filter(None, (args.sheet, args.edge_sheet)):
        require_file_place(path)
        format_of(path)


def run_control(args: argparse.Namespace) -> None:
    from .agreement import agreement_table, evaluate_control
    for option in ("method", "cache", "student", "lora", "reference", "crowded", "diversity", "probe", "out"):
        value = getattr(args, option)
        if value is not None and value is not False and value != []:        # 0 is a wish too
            raise ValueError(f"--{option} has no effect with --control; leave one of the two out")
    rows, images, prompts = evaluate_control(args.count, args.seed, Files(args.weights), None, *where(args),
                                             args.judge)
    print(agreement_table(rows))
    save_sheets(args, images, prompts)


def run_compare(args: argparse.Namespace) -> None:
    from .evaluate import write_results
    from .measure.results import REAL, merged, read_measured
    from .measure.tables import differences, results_table
    require_results_place(args.out)
    measured = merged([(str(path), read_measured(path)) for path in args.results])
    methods = [row.name for row in measured.rows if row.name != REAL]
    if not methods:
        raise ValueError(f"no method was evaluated, only real images: {args.results[0]}")
    base = measured.row(args.base or methods[0]).name
    print(results_table(measured), differences(measured, base), sep="\n\n")
    if args.out:
        print("\n".join(map(str, write_results(measured, args.out, base))))


def run_diagnose(args: argparse.Namespace) -> None:
    from .diagnose import diagnose, tables, write_diagnosis
    require_results_place(args.out)
    device, batch = where(args)
    found = diagnose(args.count, args.seed, Files(args.weights), device, batch, args.judge, args.guidance,
                     args.crowded)
    print(tables(found))
    if args.out:
        print("\n".join(map(str, write_diagnosis(found, args.out))))


def save_sheets(args: argparse.Namespace, images: "Mapping[str, BenchImages]", prompts: "Prompts") -> None:
    from .measure.sheets import edge_sheet, method_sheet
    rows = range(min(SHEET_ROWS, args.count))
    for path, sheet in ((args.sheet, method_sheet), (args.edge_sheet, edge_sheet)):
        if path:
            sheet(images, prompts, rows).save(path)
            print(path)


def where(args: argparse.Namespace) -> tuple[str, int]:
    """Device and images at a time."""
    device = device_of(args)
    return device, batch_for(device) if args.batch is None else args.batch


def device_of(args: argparse.Namespace) -> str:
    """That of --device, or the best one. ValueError for one that is not here."""
    from ..device import checked_device
    return str(checked_device(args.device))


def batch_for(device: str) -> int:
    """Images at a time that fill the device."""
    return 100 if device == "cpu" else 500
