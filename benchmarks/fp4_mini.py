"""What do 4 bits cost? PixArt-mini's four-step student in FP4DiT's format, by judge B on held-out prompts.

    python benchmarks/fp4_mini.py --work DIR [--count 300]     goes on; prints tables, draws DIR/results.png

Rounded to the nearest, with learned rounding, and with a low-rank branch; inputs of layers and attention in full
precision, in 8 and in 6 bits; and the host's int8 and 4-bit formats beside. Rounding is learned on training prompts.
"""
import argparse
import logging
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pixart.checkpoint import load  # noqa: E402
from pixart.files.atomic import replacing  # noqa: E402
from pixart.mini import SHIPPED, Files  # noqa: E402
from pixart.mini.evaluate import Instrument  # noqa: E402
from pixart.mini.measure.batches import BenchImages  # noqa: E402
from pixart.mini.measure.bench import Bench  # noqa: E402
from pixart.mini.measure.bootstrap import paired_difference, resamples  # noqa: E402
from pixart.mini.measure.methods import Sampled  # noqa: E402
from pixart.mini.measure.plot import can_plot  # noqa: E402
from pixart.mini.measure.results import About, Measured, Row, read_measured  # noqa: E402
from pixart.mini.measure.tables import differences, markdown, results_table  # noqa: E402
from pixart.mini.prepare import scene_and_caption  # noqa: E402
from pixart.model.transformer import PixArtTransformer  # noqa: E402
from pixart.quantize.activations import round_inputs  # noqa: E402

LEARNED = ("--device", "cpu", "--prompts", "PROMPTS", "--iterations", "500", "--rate", "2e-3", "--passes", "128")
E2M1 = ("--to", "fp4", "--floats", "e2m1,e2m1")
FILES: dict[str, tuple[str, ...]] = {
    "int8_tensorwise": ("--to", "int8_tensorwise"),
    "nvfp4": ("--to", "nvfp4"),
    "e3m0,e2m1 nearest": ("--to", "fp4"),
    "e3m0,e2m1 learned": ("--to", "fp4", *LEARNED),
    "e2m1 nearest": E2M1,
    "e2m1 learned": (*E2M1, *LEARNED),
    "e2m1 nearest, rank 8": (*E2M1, "--rank", "8"),
    "e2m1 learned, rank 8": (*E2M1, "--rank", "8", *LEARNED),
}
ORIGINAL = "original"
ROUNDED = (ORIGINAL, "e2m1 nearest", "e2m1 learned", "e2m1 nearest, rank 8")      # measured with fewer input bits too


@dataclass(frozen=True)
class RoundedInputs(Sampled):
    """The same with the inputs of all layers and of attention rounded to `bits`."""

    bits: int = 8

    def model(self, files: Files, device: torch.device | str = "cpu") -> PixArtTransformer:
        model = load(self.file(files), dtype=torch.float32, device=device).eval().requires_grad_(False)
        return round_inputs(model, self.bits)


def quantized(work: Path, name: str) -> Path:
    """The file of this name, made unless it is there."""
    path, prompts = work / f"{plain(name)}.safetensors", work / "prompts.txt"
    if not path.exists():
        prompts.write_text("\n".join(scene_and_caption(i, 11)[1] for i in range(64)))
        words = [str(prompts) if word == "PROMPTS" else word for word in FILES[name]]
        subprocess.run([sys.executable, "-m", "pixart", "quantize", str(SHIPPED.student), "--out", str(path), *words],
                       check=True, cwd=ROOT)
    return path


def methods_of(work: Path) -> list[Sampled]:
    files = {ORIGINAL: SHIPPED.student, **{name: quantized(work, name) for name in FILES}}
    whole = [Sampled(name, file, "lcm", 4) for name, file in files.items()]
    return whole + [RoundedInputs(f"{name}, A{bits}", files[name], "lcm", 4, bits=bits)
                    for name in ROUNDED for bits in (8, 6)]


def measured(work: Path, count: int) -> Measured:
    """A row a method, each kept in a file; the original student comes first, and images are compared with its."""
    bench = Bench.open(SHIPPED, count, batch=50)
    instrument, rows = Instrument(bench), list[Row]()
    against: tuple[str, BenchImages] | None = None
    about = About(count, bench.prompts.seed, False, bench.prompts.digest, instrument.name, 0.0)
    for method in methods_of(work):
        place = work / f"{plain(method.name)}.json"
        if not place.exists() or against is None:
            row, images = instrument.measure(method, against)
            Measured(about, (row,)).save(place)
            against = against or (method.name, images)
        rows += read_measured(place).rows
    return Measured(about, tuple(rows))


def sizes(work: Path) -> dict[str, float]:
    """MB of every file."""
    files = {ORIGINAL: SHIPPED.student, **{name: work / f"{plain(name)}.safetensors" for name in FILES}}
    return {name: file.stat().st_size / 1e6 for name, file in files.items()}


def plot(found: Measured, megabytes: dict[str, float], path: Path) -> None:
    """PNG: whole images minus those of the original weights, with the paired interval, over the size of the file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes, drawn = figure.subplots(), resamples(found.about.count)
    base = found.rows[0].sums()["images"]
    rows = {row.name: row for row in found.rows if row.name in megabytes}
    for number, (name, row) in enumerate(rows.items()):
        less = paired_difference(row.sums()["images"], base, drawn)
        reach = [[100 * (less.value - less.low)], [100 * (less.high - less.value)]]
        axes.errorbar(megabytes[name] * (1 + 0.012 * (number % 5 - 2)), 100 * less.value, yerr=reach, capsize=3,
                      fmt="D" if "learned" in name else "o", label=f"{name}, {megabytes[name]:.1f} MB")
    axes.axhline(0, color="grey", linestyle=":")
    axes.set(xlabel="file, MB (points of equal size drawn apart)", ylabel="whole images minus original, %")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.02, 0.5))
    axes.grid(alpha=0.3)
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=110)


def plain(name: str) -> str:
    """The name as part of a file name."""
    return name.replace(",", "").replace(" ", "-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for files and results")
    parser.add_argument("--count", type=int, default=300, help="held-out prompts that are measured")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args.work.mkdir(parents=True, exist_ok=True)
    found = measured(args.work, args.count)
    megabytes = sizes(args.work)
    table = markdown(["weights", "MB"], [[name, f"{size:.2f}"] for name, size in megabytes.items()])
    print(results_table(found), differences(found, ORIGINAL), table, sep="\n\n")
    if can_plot():
        plot(found, megabytes, args.work / "results.png")


if __name__ == "__main__":
    main()
