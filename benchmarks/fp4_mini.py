"""What do 4 bits cost? PixArt-mini's four-step student in FP4DiT's format, by judge B on held-out sentences.

    python benchmarks/fp4_mini.py --work DIR [--count 300]     goes on where it was stopped; prints the table

Rounded to the nearest, with learned rounding, and with a branch of low rank; inputs of layers and attention in full
precision, in 8 and in 6 bits; and the host's int8 and 4-bit formats beside. Rounding is learned on training sentences.
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
from pixart.mini import SHIPPED, Files  # noqa: E402
from pixart.mini.evaluate import Instrument  # noqa: E402
from pixart.mini.measure.batches import BenchPictures  # noqa: E402
from pixart.mini.measure.bench import Bench  # noqa: E402
from pixart.mini.measure.methods import Sampled  # noqa: E402
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
UNPACKED = "unpacked"
ROUNDED = (UNPACKED, "e2m1 nearest", "e2m1 learned", "e2m1 nearest, rank 8")      # measured with fewer input bits too


@dataclass(frozen=True)
class RoundedInputs(Sampled):
    """The same with the inputs of all layers and of attention rounded to `bits`."""

    bits: int = 8

    def model(self, files: Files, device: torch.device | str = "cpu") -> PixArtTransformer:
        model = load(self.file(files), dtype=torch.float32, device=device).eval().requires_grad_(False)
        return round_inputs(model, self.bits)


def packed(work: Path, name: str) -> Path:
    """The file of this name, made unless it is there."""
    path, prompts = work / f"{plain(name)}.safetensors", work / "prompts.txt"
    if not path.exists():
        prompts.write_text("\n".join(scene_and_caption(i, 11)[1] for i in range(64)))
        words = [str(prompts) if word == "PROMPTS" else word for word in FILES[name]]
        subprocess.run([sys.executable, "-m", "pixart", "quantize", str(SHIPPED.student), "--out", str(path), *words],
                       check=True, cwd=ROOT)
    return path


def ways_of_drawing(work: Path) -> list[Sampled]:
    files = {UNPACKED: SHIPPED.student, **{name: packed(work, name) for name in FILES}}
    whole = [Sampled(name, file, "lcm", 4) for name, file in files.items()]
    return whole + [RoundedInputs(f"{name}, A{bits}", files[name], "lcm", 4, bits=bits)
                    for name in ROUNDED for bits in (8, 6)]


def measured(work: Path, count: int) -> Measured:
    """A row a method, each kept in a file; the unpacked student comes first, and pictures are compared with its."""
    bench = Bench.open(SHIPPED, count, batch=50)
    instrument, rows = Instrument(bench), list[Row]()
    against: tuple[str, BenchPictures] | None = None
    about = About(count, bench.prompts.seed, False, bench.prompts.digest, instrument.name, 0.0)
    for method in ways_of_drawing(work):
        place = work / f"{plain(method.name)}.json"
        if not place.exists() or against is None:
            row, pictures = instrument.measure(method, against)
            Measured(about, (row,)).save(place)
            against = against or (method.name, pictures)
        rows += read_measured(place).rows
    return Measured(about, tuple(rows))


def sizes(work: Path) -> str:
    """Markdown."""
    files = {UNPACKED: SHIPPED.student, **{name: work / f"{plain(name)}.safetensors" for name in FILES}}
    return markdown(["weights", "MB"], [[name, f"{file.stat().st_size / 1e6:.2f}"] for name, file in files.items()])


def plain(name: str) -> str:
    """As the name of a file."""
    return name.replace(",", "").replace(" ", "-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for files and results")
    parser.add_argument("--count", type=int, default=300, help="held-out sentences that are measured")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args.work.mkdir(parents=True, exist_ok=True)
    found = measured(args.work, args.count)
    print(results_table(found), differences(found, UNPACKED), sizes(args.work), sep="\n\n")


if __name__ == "__main__":
    main()
