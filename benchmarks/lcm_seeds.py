"""How much does a student depend on its seed? PixArt-mini's LCM student trained with several seeds, by judge B.

    python benchmarks/lcm_seeds.py --work DIR [--seeds 0 1 2] [--rates 1e-3 3e-4] [--steps 500] [--count 500]

Goes on where it was stopped; prints a table. A seed determines the training, its initialisation and its endless stream
of images. Some 10 minutes a training and 2 a measurement on one core.
"""
import argparse
import logging
import shutil
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pixart.commands.numbers import positive_number  # noqa: E402
from pixart.mini import SHIPPED, Files  # noqa: E402
from pixart.mini.evaluate import evaluate  # noqa: E402
from pixart.mini.measure.bootstrap import paired_difference, resamples  # noqa: E402
from pixart.mini.measure.methods import Sampled  # noqa: E402
from pixart.mini.measure.results import Row, chained, read_measured  # noqa: E402
from pixart.mini.measure.tables import markdown, signed  # noqa: E402
from pixart.mini.recipe import MiniRecipe, build_mini  # noqa: E402


def trained(folder: Path, seed: int, rate: float, steps: int) -> Path:
    """The student of a seed, from the shipped base model; made in `folder` unless it is there."""
    files = Files(folder / "weights")
    if not files.root.exists():
        shutil.copytree(SHIPPED.root, files.root, ignore=shutil.ignore_patterns(files.student.name))
    usual = MiniRecipe()
    recipe = replace(usual, seed=seed, student=replace(usual.student, seed=seed, learning_rate=rate, steps=steps))
    build_mini(folder / "work", files, recipe, "cpu", stages=("student",))
    return files.student


def measured(folder: Path, seed: int, rate: float, steps: int, count: int) -> Row:
    """Its results in four steps, by judge B."""
    place = folder / f"results-{count}.json"
    if not place.exists():
        student = trained(folder, seed, rate, steps)
        found = evaluate(count, methods=[Sampled(f"seed {seed}", student, "lcm", 4)], diverse=0)
        found.measured.save(place)
    return read_measured(place).row(f"seed {seed}")


def table(rows: dict[float, list[Row]]) -> str:
    """Whole images in per cent by learning rate and seed, their mean, and how it differs from the first rate's."""
    first, lines = next(iter(rows.values())), []
    for rate, given in rows.items():
        shares = [100 * row.accuracy["images"] for row in given]
        mine, plain = (chained([row.sums()["images"] for row in each]) for each in (given, first))
        mean = f"{sum(shares) / len(shares):.1f}"
        if given is not first:
            mean += f"; {signed(paired_difference(mine, plain, resamples(len(mine[0]))), 100, 1)}"
        lines.append([f"{rate:g}", *(f"{share:.1f}" for share in shares), mean])
    return markdown(["learning rate", *(row.name for row in first), "mean"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of states, weights and results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--rates", type=positive_number, nargs="+", default=[1e-3, 3e-4],
                        help="learning rates, the first to compare with (default: 1e-3, the recipe's, and 3e-4)")
    parser.add_argument("--steps", type=int, default=MiniRecipe().student.steps, help="(default: the recipe's)")
    parser.add_argument("--count", type=int, default=500, help="held-out prompts (default: 500)")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows = {rate: [measured(args.work / f"rate-{rate:g}-seed-{seed}-steps-{args.steps}", seed, rate, args.steps,
                            args.count) for seed in args.seeds] for rate in args.rates}
    print(table(rows))


if __name__ == "__main__":
    main()
