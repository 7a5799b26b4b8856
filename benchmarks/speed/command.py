"""Speed and memory on random weights: this package, the host's own PixArt and diffusers in one run, in turns.

    python -m benchmarks speed --out DIR                        full size, this machine
    python -m benchmarks speed --out DIR --sizes 256 512 1024 2048 4096 --batches 1 4 --dtypes bf16
    python -m benchmarks speed --out DIR --depth 4              four blocks of full width: ratios in minutes on a CPU
    python -m benchmarks speed --out DIR --tiny                 rehearsal, no figure means anything
    python -m benchmarks speed --out DIR --topics caches --quality     what shortcuts cost in images, in the same rows

Rounds run A B C A B C, so that a machine whose speed drifts treats all alike: quote the ratios, which are medians of
those within a round. On one thread of a CPU (OMP_NUM_THREADS=1) processor time is taken, which other programs do not
affect. DIR/report.md and DIR/report.json are rewritten after every result, DIR/passes.png comes last. What is missing
(diffusers, ComfyUI at $COMFYUI_PATH) is a line in the report.
"""
import argparse
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pixart.commands.numbers import positive_number

if TYPE_CHECKING:
    from ..instruments.notes import Notes
    from ..instruments.report import Report
    from ..instruments.setting import Setting
    from .wish import Wish

TOPICS = {"passes": "one pass beside other implementations", "guided": "unequal prompts in one pass",
          "samplings": "whole samplings by number of steps", "caches": "work reused from step to step",
          "quantized": "quantised weights", "text": "a prompt through T5 in every precision",
          "family": "ControlNet, feedback, PT-DiT, FlexDiT", "memory": "peak memory, computed"}
HEAD = 72


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("speed", help="side by side: ours, the host's own, diffusers; caches, memory, quality",
                                 description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for report.md, report.json and plots")
    parser.add_argument("--topics", choices=TOPICS, nargs="+", default=list(TOPICS), metavar="TOPIC",
                        help="; ".join(f"{name}: {about}" for name, about in TOPICS.items()) + " (default: all)")
    parser.add_argument("--sizes", type=multiple(16), nargs="+", default=[512], metavar="PX", help="(default: 512)")
    parser.add_argument("--batches", type=multiple(1), nargs="+", default=[1], metavar="N", help="(default: 1)")
    parser.add_argument("--steps", type=multiple(1), nargs="+", default=[4, 20], metavar="N",
                        help="of samplings: up to 8 by LCM, more by DPM-Solver++ with guidance (default: 4 20)")
    parser.add_argument("--dtypes", choices=("fp32", "bf16", "fp16"), nargs="+", metavar="TYPE",
                        help="fp32, bf16, fp16 (default: fp32 bf16, on a GPU bf16)")
    parser.add_argument("--tokens", type=multiple(1), default=120, metavar="N", help="of a prompt (default: 120)")
    parser.add_argument("--budgets", type=positive_number, nargs="+", default=[2.0], metavar="X",
                        help="of caches: how many times less work (default: 2)")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="caches, as in `pixart generate --cache` "
                        "(default: all, and branches at random)")
    parser.add_argument("--ecad", type=Path, nargs="+", default=[], metavar="JSON", help="schedule files to time too, "
                        "stretched to the depth; those for PixArt-mini's depth have their --quality")
    parser.add_argument("--cached-steps", type=multiple(1), default=20, metavar="N", help="of caches (default: 20)")
    parser.add_argument("--depth", type=multiple(1), metavar="N", help="blocks of the networks (default: 28)")
    parser.add_argument("--width", type=multiple(HEAD), metavar="N", help=f"of the networks, a multiple of {HEAD} "
                        "(default: 1152)")
    parser.add_argument("--rounds", type=multiple(1), metavar="N",
                        help="of a timing, after one that warms up (default: as many as fit into seconds)")
    parser.add_argument("--device", help="cpu, cuda (default: the best there is)")
    parser.add_argument("--tiny", action="store_true", help="tiny networks and images: proves the command itself")
    add_quality(parser)
    parser.set_defaults(run=run)


def add_quality(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("--quality: the same caches on PixArt-mini")
    group.add_argument("--quality", action="store_true", help="judge B's reading, KID and PSNR to the uncached run, "
                       "beside fewer steps at equal time and work; goes on where it was stopped")
    group.add_argument("--batch", type=multiple(1), default=50, metavar="N", help="images at a time (default: 50)")
    group.add_argument("--count", type=multiple(1), default=300, metavar="N", help="held-out prompts (default: 300)")
    group.add_argument("--timed", type=multiple(1), default=5, metavar="N",
                       help="prompts that are timed, in turns (default: 5)")


def multiple(of: int) -> Callable[[str], int]:
    """A reader of whole numbers above 0 that are multiples of `of`."""
    def read(text: str) -> int:
        if not text.isdecimal() or not int(text) or int(text) % of:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0" + f" and a multiple of {of}"
                                             * (of > 1))
        return int(text)
    return read


def run(args: argparse.Namespace) -> int:
    """All topics in this process, one after the other; the number of failed checks decides the exit code."""
    from pixart.device import checked_device

    from ..instruments.machine import machine
    from ..instruments.report import Report
    from ..instruments.setting import Setting
    device = checked_device("cpu" if args.tiny else args.device).type
    facts = machine(device) | ({"rehearsal": "tiny networks; no figure here means anything"} if args.tiny else {})
    report = Report(args.out, facts, "Speed and memory, random weights")
    with tempfile.TemporaryDirectory(prefix="pixart-speed-") as folder:
        setting = Setting(device, args.tiny, Path(folder), time.monotonic() + 1e9, args.rounds, args.depth, args.width)
        measure(args, setting, report)
    failures = report.failures()
    print(report.summary(), f"{report.path}: {failures} failed", sep="\n", file=sys.stderr)
    return 1 if failures else 0


def measure(args: argparse.Namespace, setting: "Setting", report: "Report") -> None:
    from ..instruments.cases import carry_out
    from .wish import USUAL_METHODS, Wish
    dtypes = tuple(args.dtypes or (("bf16",) if setting.cuda else ("fp32", "bf16")))
    wish = Wish(tuple(args.sizes), tuple(args.batches), dtypes, tuple(args.steps), args.cached_steps,
                tuple(args.budgets), tuple(args.ecad), args.tokens, tuple(args.methods or USUAL_METHODS))
    for topic in args.topics:
        carry_out(importlib.import_module(f".{topic}", __package__).cases(setting, wish), setting,
                  notes_of(report, topic))
    if args.quality:
        carry_out({"quality": partial(quality, args, wish, report)}, setting, notes_of(report, "quality"))
    plot(report)


def notes_of(report: "Report", stage: str) -> "Notes":
    from ..instruments.notes import Notes
    return Notes(lambda line: report.add(json.loads(line)), stage)


def quality(args: argparse.Namespace, wish: "Wish", report: "Report", setting: "Setting", notes: "Notes") -> None:
    from pixart.accelerate.ecad import read_ecad
    from pixart.checkpoint import read_config
    from pixart.mini import SHIPPED

    from . import quality as on_mini
    from .caches import CACHED
    gains = {note["cells"]["method"]: note["cells"]["times as fast"] for note in report.rows(CACHED)}
    made = on_mini.Quality(args.out / "quality", args.count, args.timed, args.batch, setting)
    depth = read_config(SHIPPED.teacher).depth
    files = [path for path in wish.ecad if read_ecad(path).schedule.depth == depth]
    on_mini.measure(made, wish.methods, wish.budgets, files, gains, notes)


def plot(report: "Report") -> None:
    from pixart.mini.measure.plot import can_plot

    from .passes import PASSES
    from .plot import plot_passes
    rows = [note["cells"] for note in report.rows(PASSES)]
    if rows and can_plot():
        plot_passes(rows, report.folder / "passes.png")
