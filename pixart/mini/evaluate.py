"""Evaluation of methods on held-out prompts of PixArt-mini: accuracy, distances, diversity, cost."""
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from . import SHIPPED, Files
from .judge import load_judge, own_accuracy
from .measure.accuracy import Answers
from .measure.batches import BenchImages
from .measure.bench import Bench
from .measure.cost import Cost, count, machine, timed
from .measure.distances import features_of, frechet_distance, kernel_distances
from .measure.diversity import diversity
from .measure.judges import ImageJudge
from .measure.methods import USUAL_METHODS, GenerationMethod
from .measure.plot import can_plot, quality_speed
from .measure.prompts import Prompts
from .measure.results import REAL, About, Measured, Row
from .measure.similarity import similarities
from .measure.tables import differences, results_table

logger = logging.getLogger(__name__)

KEPT = 20                      # images of each row that are kept for contact sheets
DIVERSE = 50                   # prompts that diversity is measured on


class Instrument:
    """The judge, and what it sees in the real images: everything that generated images are held against."""

    def __init__(self, bench: Bench, judge: str = "b") -> None:
        """judge: b only measures; a may have had a part in training."""
        self.bench, self.path = bench, judge_file(bench.files, judge)
        self.judge: ImageJudge = load_judge(self.path).to(bench.device)
        self.name = f"{judge} {hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]}"
        self.real = bench.prompts.real()
        self.features = self.features_of(self.real)

    def features_of(self, images: BenchImages) -> Tensor:
        return features_of(self.judge, images, self.bench.batch, self.bench.device)

    def real_row(self) -> Row:
        """The real images, with the distances between them and those of as many other scenes: the floor of both."""
        prompts = self.bench.prompts
        other = Prompts.held_out(len(prompts), prompts.seed + 1, prompts.crowded).real()
        return self.row(REAL, self.real, self.features_of(other))

    def row(self, name: str, images: BenchImages, features: Tensor | None = None, cost: Cost | None = None,
            reference: tuple[str, BenchImages] | None = None, diverse: Tensor | None = None) -> Row:
        """features: those of `images` unless given."""
        bench = self.bench
        answers = Answers.read(self.judge, bench.prompts.scenes, images, bench.batch, bench.device)
        seen = self.features_of(images) if features is None else features
        alike = {} if reference is None else similarities(self.judge, images, reference[1], bench.batch, bench.device)
        return Row(name, tuple(answers.text()), frechet_distance(seen, self.features),
                   tuple(kernel_distances(seen, self.features).tolist()), reference and reference[0],
                   **{what: tuple(values.tolist()) for what, values in alike.items()},
                   diversity=None if diverse is None else tuple(diverse.tolist()), cost=cost)

    def measure(self, method: GenerationMethod, reference: tuple[str, BenchImages] | None = None, diverse: int = 0,
                probe: int = 1) -> tuple[Row, BenchImages]:
        """Generates and measures. reference: the row that the images are compared with one by one, and its images.

        diverse: of how many prompts the diversity is measured, which takes three more images each. probe: of how
        many images the work is counted.
        """
        passes, macs = count(method, self.bench, probe)
        images, milliseconds = timed(method, self.bench)
        cost = Cost(passes, macs, milliseconds, machine(self.bench))
        spread = None
        if diverse:
            spread = diversity(self.judge, method, self.bench.first(diverse), images.first(diverse))
        row = self.row(method.name, images, None, cost, reference, spread)
        right = row.accuracy
        logger.info("%s: %.1f %% of attributes, %.1f %% of images, %.1f ms per image", row.name, 100 * right["all"],
                    100 * right["images"], milliseconds)
        return row, images


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and the first images of every row."""

    measured: Measured
    prompts: Prompts
    images: dict[str, BenchImages]

    @property
    def rows(self) -> tuple[Row, ...]:
        return self.measured.rows

    def table(self) -> str:
        """Markdown."""
        return results_table(self.measured)


def evaluate(count: int = 1000, seed: int = 7, files: Files = SHIPPED,
             methods: Sequence[GenerationMethod] = USUAL_METHODS, device: str = "cpu", batch: int = 100,
             crowded: bool = False, judge: str = "b", reference: GenerationMethod | None = None, diverse: int = DIVERSE,
             probe: int = 1) -> Evaluation:
    """Measure all methods on `count` held-out prompts, beside the real images of their scenes.

    reference: what PSNR, SSIM and judge-LPIPS compare with; it becomes the first row. diverse: prompts that
    diversity is measured on, 0 for none. probe: images whose work is counted. Raises ValueError where two methods
    have one name, and what reading raises.
    """
    if probe < 1 or diverse < 0:
        raise ValueError(f"diversity of {diverse} prompts and work of {probe} images asked for; at least 0 and 1 "
                         "are possible")
    methods = checked_methods(methods, reference, files)
    instrument = Instrument(Bench.open(files, count, seed, crowded, device, batch), judge)
    rows, images = [instrument.real_row()], {REAL: instrument.real.first(KEPT)}
    against: tuple[str, BenchImages] | None = None
    for method in methods:
        row, generated = instrument.measure(method, against, min(diverse, count), min(probe, count))
        rows.append(row)
        images[method.name] = generated.first(KEPT)
        if reference is not None and method is methods[0]:
            against = (method.name, generated)
    prompts = instrument.bench.prompts
    about = About(count, seed, crowded, prompts.digest, instrument.name, own_accuracy(instrument.path)["all"])
    return Evaluation(Measured(about, tuple(rows)), prompts, images)


def checked_methods(methods: Sequence[GenerationMethod], reference: GenerationMethod | None,
                    files: Files) -> list[GenerationMethod]:
    """The reference first, then the others; names must differ, and files must be there."""
    ordered = ([reference] if reference is not None else []) + [one for one in methods if one != reference]
    names = [method.name for method in ordered]
    for name in names:
        if names.count(name) > 1 or name == REAL:
            raise ValueError(f"two rows would be called {name!r}; give one of them another name (NAME=...)")
    for method in ordered:
        if hasattr(method, "check"):
            method.check(files)
    return ordered


def judge_file(files: Files, judge: str) -> Path:
    """The file of judge "a" or "b"."""
    if judge not in ("a", "b"):
        raise ValueError(f"unknown judge {judge!r}; use a or b")
    return files.judge if judge == "b" else files.judge_a


def write_results(measured: Measured, folder: Path, base: str | None = None) -> list[Path]:
    """results.json, results.md and, where matplotlib is, results.png into `folder`, which is made; returns the files.

    The Markdown ends with the differences to `base`; by default to the row that others were compared with, else to the
    first method.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = [folder / "results.json", folder / "results.md"]
    measured.save(made[0])
    base = base or next((row.reference for row in measured.rows if row.reference), None)
    methods = [row.name for row in measured.rows if row.name != REAL]
    parts = [results_table(measured)] + ([differences(measured, base or methods[0])] if len(methods) > 1 else [])
    made[1].write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    if not can_plot():
        logger.warning("no plot: matplotlib is missing; install it, then: python -m pixart mini compare %s --out %s",
                       made[0], folder)
        return made
    quality_speed(measured, folder / "results.png")
    return [*made, folder / "results.png"]
