"""Which timesteps, weights and averages improve a training? Equal budgets, on PixArt-mini.

    python -m pixart mini data --work W                    (or any folder of images of PixArt-mini)
    python benchmarks/training_options.py run --data W/data --work R
    python benchmarks/training_options.py table --work R

Every case goes on from one teacher for as many steps, on the same batches with the same noise, and generates images
of the same held-out prompts with the average whose decay is 0.98. A case that is finished is left alone and one that
was stopped goes on, so `run` may be stopped and started again. The shipped teacher has little left to learn: --teacher
takes another one for the same text encoder and autoencoder, such as an earlier state of its training.

    python benchmarks/training_options.py noise --data W/data

tells how much of the noise in the loss of one step comes from the draw of the timesteps, which stratification removes.
"""
import argparse
import logging
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pixart.checkpoint import load, save_checkpoint  # noqa: E402
from pixart.mini import SHIPPED  # noqa: E402
from pixart.mini.evaluate import Instrument  # noqa: E402
from pixart.mini.measure.bench import Bench  # noqa: E402
from pixart.mini.measure.bootstrap import paired_difference, resamples  # noqa: E402
from pixart.mini.measure.methods import Sampled  # noqa: E402
from pixart.mini.measure.results import About, Measured, Row, chained, read_measured  # noqa: E402
from pixart.mini.measure.tables import markdown, signed  # noqa: E402
from pixart.model.attention import matmul_attention, sdpa  # noqa: E402
from pixart.model.transformer import PixArtTransformer  # noqa: E402
from pixart.prepare.state import settle  # noqa: E402
from pixart.sampling.schedule import STEPS, add_noise  # noqa: E402
from pixart.train.alignment import Aligned, Alignment  # noqa: E402
from pixart.train.data import PreparedFolder  # noqa: E402
from pixart.train.diffusion import diffusion_loss  # noqa: E402
from pixart.train.frozen_features import with_alignment  # noqa: E402
from pixart.train.loop import train_averages  # noqa: E402
from pixart.train.loop_config import LoopConfig  # noqa: E402
from pixart.train.objectives import Diffusion  # noqa: E402
from pixart.train.timesteps import Timesteps  # noqa: E402
from pixart.train.weighting import timestep_weights  # noqa: E402
from pixart.weights.fingerprint import weights_fingerprint  # noqa: E402

RANGE = Timesteps("range", low=250, high=800, share=0.7)
BEFORE, BASE = "before", "uniform"
CASES: dict[str, dict[str, Any]] = {
    BASE: {},
    "v, cap 20": {"weighting": "v"},
    "range 250-800": {"timesteps": RANGE},
    "range 250-800, v, cap 20": {"timesteps": RANGE, "weighting": "v"},
    "laplace -3, 1.5": {"timesteps": Timesteps("laplace", centre=-3.0, scale=1.5, share=0.7)},
    "range 250-800, stratified": {"timesteps": replace(RANGE, stratified=True)},
    "min-snr": {"weighting": "min-snr"},
    "range 250-800, v, cap 100": {"timesteps": RANGE, "weighting": "v", "weighting_cap": 100.0},
    "uniform, stratified": {"timesteps": Timesteps(stratified=True)},
    "logit-normal -3, 1.5": {"timesteps": Timesteps("logit-normal", centre=-3.0, scale=1.5, share=0.7)},
    "aligned with judge A, first 120 steps": {"align": Alignment("judge", steps=120)},
}
COLUMNS = ("shape", "second shape", "second colour", "all", "images")
KEPT = 0.98              # decay of the average that is measured


def config_for(steps: int, seed: int) -> LoopConfig:
    """A short training with everything a long one has: warm-up, cooldown, moving averages."""
    return LoopConfig(steps=steps, batch=64, learning_rate=5e-4, warmup=30, cooldown=150, optimizer="muon", ema=KEPT,
                      ema_decays=(0.95, 0.99), betas=(0.9, 0.98), precision="auto", seed=seed, save_every=50,
                      log_every=25)


def place(work: Path, case: str, seed: int) -> Path:
    """The folder of a case, named by letters and digits alone."""
    return work / f"{''.join(c if c.isalnum() else '_' for c in case)}-{seed}"


@cache
def instrument_of(count: int, device: str) -> Instrument:
    return Instrument(Bench.open(SHIPPED, count, device=device))


def run(case: str, seed: int, teacher: Path, data: PreparedFolder, work: Path, steps: int, count: int, device: str
        ) -> None:
    """Train a case unless its weights are there, then measure it unless that was done."""
    folder = place(work, case, seed)
    file, answer = folder / f"{KEPT}.safetensors", folder / "results.json"
    if case != BEFORE and not file.exists():
        attend = matmul_attention if device == "cpu" else sdpa
        base = load(teacher, dtype=torch.float32, attend=attend)
        model, objective = trained(base, CASES[case], data, seed)
        averages = train_averages(model, objective, data, config_for(steps, seed), folder, cpu=device == "cpu")
        for decay, average in reversed(averages.items()):          # the one that marks a finished case comes last
            network = average.network if isinstance(average, Aligned) else average
            save_checkpoint(folder / f"{decay}.safetensors", network, base.config, torch.float32)
    if not answer.exists():
        folder.mkdir(parents=True, exist_ok=True)
        instrument = instrument_of(count, device)
        method = Sampled(case, teacher if case == BEFORE else file, "dpm", 20, 2.5)
        row = instrument.row(f"{case}, seed {seed}", method.generate(instrument.bench))
        prompts = instrument.bench.prompts
        about = About(count, prompts.seed, False, prompts.digest, instrument.name, 0.0)
        Measured(about, (row,)).save(answer)


def trained(base: PixArtTransformer, options: dict, data: PreparedFolder, seed: int) -> tuple[nn.Module, Diffusion]:
    """The network and the objective of a case."""
    if "align" not in options:
        return base, Diffusion(data, **options)
    network, kind = with_alignment(base, options["align"], torch.bfloat16, seed)
    return network, kind(data)


def rows_of(work: Path, case: str) -> dict[int, Row]:
    """The results of a case, by seed."""
    found = {seed: place(work, case, seed) / "results.json" for seed in range(100)}
    return {seed: read_measured(path).rows[0] for seed, path in found.items() if path.is_file()}


def table(work: Path) -> str:
    """Markdown: per cent of the prompts, mean over the seeds, and the paired difference to the base case."""
    base, lines = rows_of(work, BASE), []
    for case in (BEFORE, *CASES):
        rows = rows_of(work, case)
        if rows:
            cells = [f"{100 * sum(row.accuracy[name] for row in rows.values()) / len(rows):.1f}"
                     + ("" if case in (BEFORE, BASE) else minus(rows, base, name)) for name in COLUMNS]
            fid = sum(row.fid for row in rows.values()) / len(rows)
            lines.append([case, str(len(rows)), *cells, f"{fid:.2f}"])
    return markdown(["", "trainings", *COLUMNS, "FID (judge)"], lines)


def minus(rows: dict[int, Row], base: dict[int, Row], name: str) -> str:
    """A case minus the base, points of per cent with the 95 % interval; "" where they have no seed in common."""
    seeds = sorted(rows.keys() & base.keys())
    if not seeds:
        return ""
    mine, plain = (chained([found[seed].sums()[name] for seed in seeds]) for found in (rows, base))
    return f"; {signed(paired_difference(mine, plain, resamples(len(mine[0]))), 100, 1)}"


@torch.no_grad()
def noise(data: PreparedFolder, batches: int, device: str, batch: int = 100, bins: int = 50) -> str:
    """Markdown: mean and standard deviation of a step's loss over 64 images, without and with stratification.

    From the loss of the shipped teacher at `batches * batch` evenly spread timesteps; its mean and its spread over
    images are taken as constant within each of `bins` ranges of timesteps.
    """
    model = load(SHIPPED.teacher, dtype=torch.float32, device=device)
    generator, losses, times = torch.Generator().manual_seed(0), [], []
    for _ in range(batches):
        some = data.batch(generator, batch).to(torch.device(device))
        t = Timesteps(stratified=True).draw(batch, generator).to(device)
        epsilon = torch.randn(some.latents.shape, generator=generator).to(device)
        output = model(add_noise(some.latents, epsilon, t), t.float(), **some.conditions(), learned_variance=True)
        losses.append(diffusion_loss(output, some.latents, epsilon, t).double().cpu())
        times.append(t.cpu())
    place_of, loss = torch.cat(times) * bins // STEPS, torch.cat(losses)
    mean, spread = (torch.stack([measure(loss[place_of == i]) for i in range(bins)]).repeat_interleave(STEPS // bins)
                    for measure in (torch.mean, torch.var))
    return markdown(["", "mean loss", "standard deviation", "stratified", "less noise"], noise_rows(mean, spread))


def noise_rows(mean: Tensor, spread: Tensor) -> list[list[str]]:
    """A row a case, from mean and variance of the loss at each timestep, (1000,) each."""
    lines = []
    for case, options in CASES.items():
        timesteps: Timesteps = options.get("timesteps", Timesteps())
        if not timesteps.stratified and "align" not in options:      # whose loss has another part
            weight = timestep_weights(options.get("weighting", "none"), options.get("weighting_cap", 20.0))
            p, expected = timesteps.probabilities, weight * mean
            middle, within = (p * expected).sum(), (p * weight ** 2 * spread).sum()
            total = within + (p * expected ** 2).sum() - middle ** 2
            apart, together = (total / 64).sqrt(), (within / 64).sqrt()
            lines.append([case, f"{middle:.4f}", f"{apart:.4f}", f"{together:.4f}",
                          f"{100 * (1 - together / apart):.0f} %"])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True)
    running = tasks.add_parser("run", help="train and measure what is missing")
    running.add_argument("--data", type=Path, required=True, help="prepared folder of PixArt-mini")
    running.add_argument("--teacher", type=Path, default=SHIPPED.teacher, help="where all begin (default: the shipped)")
    running.add_argument("--case", choices=CASES, action="append", help="default: all of them, one after the other")
    running.add_argument("--seeds", type=int, default=2, help="trainings of each case (default: 2)")
    running.add_argument("--steps", type=int, default=400, help="of each training (default: 400)")
    running.add_argument("--count", type=int, default=500, help="held-out prompts to evaluate on (default: 500)")
    running.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    noisy = tasks.add_parser("noise", help="print how noisy the loss of a step is")
    noisy.add_argument("--data", type=Path, required=True, help="prepared folder of PixArt-mini")
    noisy.add_argument("--batches", type=int, default=40, help="of 100 images (default: 40)")
    noisy.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    tables = tasks.add_parser("table", help="print what was measured so far")
    for task in (running, tables):
        task.add_argument("--work", type=Path, required=True, help="folder of states, weights and results")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if args.task == "table":
        print(table(args.work))
        return
    data = PreparedFolder(args.data)
    if args.task == "noise":
        print(noise(data, args.batches, args.device))
        return
    args.work.mkdir(parents=True, exist_ok=True)
    settle(args.work, {"teacher": weights_fingerprint(args.teacher), "steps": args.steps, "prompts": args.count},
           begun=True)
    run(BEFORE, 0, args.teacher, data, args.work, args.steps, args.count, args.device)
    for seed in range(args.seeds):
        for case in args.case or CASES:
            run(case, seed, args.teacher, data, args.work, args.steps, args.count, args.device)


if __name__ == "__main__":
    main()
