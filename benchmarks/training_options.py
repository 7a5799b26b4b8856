"""Which timesteps, weights and averages make more of a training? Equal budgets, on PixArt-mini.

    python -m pixart mini data --work W                    (or any folder of pictures of PixArt-mini)
    python benchmarks/training_options.py run --data W/data --work R
    python benchmarks/training_options.py table --work R

Every case goes on from the shipped teacher for as many steps, on the same batches with the same noise, and draws
the same held-out sentences. A case that is finished is left alone and one that was stopped goes on, so `run` may be
stopped and started again.
"""
import argparse
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pixart.atomic import replacing  # noqa: E402
from pixart.checkpoint import load, save_checkpoint  # noqa: E402
from pixart.mini import SHIPPED  # noqa: E402
from pixart.mini.evaluate import evaluate  # noqa: E402
from pixart.mini.measure.methods import Sampled  # noqa: E402
from pixart.model.attention import matmul_attention  # noqa: E402
from pixart.train.data import PreparedFolder  # noqa: E402
from pixart.train.loop import train_averages  # noqa: E402
from pixart.train.loop_config import LoopConfig  # noqa: E402
from pixart.train.objectives import Diffusion  # noqa: E402
from pixart.train.timesteps import Timesteps  # noqa: E402

RANGE = Timesteps("range", low=250, high=800, share=0.7)
BEFORE = "before"
CASES: dict[str, dict[str, object]] = {
    "uniform": {},
    "v, cap 20": {"weighting": "v"},
    "range 250-800": {"timesteps": RANGE},
    "range 250-800, v, cap 20": {"timesteps": RANGE, "weighting": "v"},
    "laplace -3, 1.5": {"timesteps": Timesteps("laplace", centre=-3.0, scale=1.5, share=0.7)},
    "range 250-800, stratified": {"timesteps": replace(RANGE, stratified=True)},
    "min-snr": {"weighting": "min-snr"},
    "range 250-800, v, cap 100": {"timesteps": RANGE, "weighting": "v", "weighting_cap": 100.0},
    "uniform, stratified": {"timesteps": Timesteps(stratified=True)},
    "logit-normal -3, 1.5": {"timesteps": Timesteps("logit-normal", centre=-3.0, scale=1.5, share=0.7)},
}
COLUMNS = ("shape", "second shape", "second colour", "all", "pictures")


def config_for(steps: int, seed: int) -> LoopConfig:
    """A short training with everything a long one has: warm-up, cooldown, a moving average."""
    return LoopConfig(steps=steps, batch=64, learning_rate=5e-4, warmup=30, cooldown=150, optimizer="muon", ema=0.98,
                      ema_decays=(0.95, 0.99), betas=(0.9, 0.98), precision="bf16", seed=seed, save_every=50,
                      log_every=25)


def place(work: Path, case: str, seed: int) -> Path:
    """The folder of a case, named by letters and digits alone."""
    return work / f"{''.join(c if c.isalnum() else '_' for c in case)}-{seed}"


def run(case: str, seed: int, data: PreparedFolder, work: Path, steps: int, count: int) -> None:
    """Train a case unless its weights are there, then measure it unless that was done."""
    folder = place(work, case, seed)
    file, answer = folder / "0.98.safetensors", folder / "measured.json"
    if not file.exists() and case != BEFORE:
        model = load(SHIPPED.teacher, dtype=torch.float32, attend=matmul_attention)
        averages = train_averages(model, Diffusion(data, **CASES[case]), data, config_for(steps, seed), folder)
        for decay, average in reversed(averages.items()):
            save_checkpoint(folder / f"{decay}.safetensors", average, model.config, torch.float32)
    if not answer.exists():
        folder.mkdir(parents=True, exist_ok=True)
        weights = SHIPPED.teacher if case == BEFORE else file
        row = evaluate(count, methods=[Sampled(case, weights, "dpm", 20, 2.5)], diverse=0).rows[-1]
        with replacing(answer) as beside:
            beside.write_text(json.dumps({"case": case, "seed": seed, "count": count, "steps": steps,
                                          "distance": row.fid, "accuracy": row.accuracy}))


def table(work: Path) -> str:
    """Markdown: one row a case, per cent of the sentences, mean over the seeds with each seed behind it."""
    found = [json.loads(path.read_text()) for path in sorted(work.glob("*/measured.json"))]
    lines = ["| | seeds | " + " | ".join(COLUMNS) + " | FID (judge) |", "|---" * (len(COLUMNS) + 3) + "|"]
    for case in (BEFORE, *CASES):
        runs = sorted((one for one in found if one["case"] == case), key=lambda one: one["seed"])
        if runs:
            cells = [spread([100 * one["accuracy"][name] for one in runs]) for name in COLUMNS]
            cells.append(spread([one["distance"] for one in runs]))
            lines.append(f"| {case} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """"71.0 (70.2, 71.8)"."""
    mean = f"{sum(values) / len(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({', '.join(f'{value:.1f}' for value in values)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True)
    running = tasks.add_parser("run", help="train and measure what is missing")
    running.add_argument("--data", type=Path, required=True, help="prepared folder of PixArt-mini")
    running.add_argument("--case", choices=CASES, action="append", help="default: all of them, one after the other")
    running.add_argument("--seeds", type=int, default=2, help="trainings of each case (default: 2)")
    running.add_argument("--steps", type=int, default=400, help="of each training (default: 400)")
    running.add_argument("--count", type=int, default=500, help="held-out sentences to draw (default: 500)")
    tables = tasks.add_parser("table", help="print what was measured so far")
    for task in (running, tables):
        task.add_argument("--work", type=Path, required=True, help="folder of states, weights and results")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if args.task == "table":
        print(table(args.work))
        return
    data = PreparedFolder(args.data)
    run(BEFORE, 0, data, args.work, args.steps, args.count)
    for seed in range(args.seeds):
        for case in args.case or CASES:
            run(case, seed, data, args.work, args.steps, args.count)


if __name__ == "__main__":
    main()
