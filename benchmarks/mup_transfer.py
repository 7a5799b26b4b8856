"""Does a learning rate found on a narrow PixArt hold for a wide one? Loss over rate, standard beside muP.

    python benchmarks/mup_transfer.py --data prepared --out transfer.png

Trains one small PixArt per parametrisation, width and learning rate on a prepared folder, all on the same batches,
noise and timesteps, and draws the curves. Each finished run is one line of JSON beside the image, so the command
may be stopped and started again, and another call may add rates or widths. At the base width both parametrisations
are the same training; it runs once. Needs matplotlib.
"""
import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from pixart.commands.numbers import finite_number  # noqa: E402
from pixart.config import PixArtConfig  # noqa: E402
from pixart.model.attention import matmul_attention  # noqa: E402
from pixart.model.transformer import PixArtTransformer  # noqa: E402
from pixart.train.data import PreparedFolder  # noqa: E402
from pixart.train.initialize import initialize  # noqa: E402
from pixart.train.mup import at_width, initialize_mup, mup_parameter_groups  # noqa: E402
from pixart.train.objectives import Diffusion  # noqa: E402

PARAMETRISATIONS = ("standard", "muP")
JUDGING_SEED = 1_000_003        # of the random numbers of the final loss; no training step has it


@dataclass(frozen=True)
class Setting:
    """What all runs of one plot share."""

    steps: int
    batch: int
    warmup: int                 # steps of rising rate; it falls to zero over the rest
    depth: int
    head: int                   # width of a head
    base_width: int
    betas: tuple[float, float]
    seed: int
    precision: str
    judged: int                 # images in the final loss


@dataclass(frozen=True)
class Run:
    """One training: a point of the plot."""

    parametrisation: str
    width: int
    log2_rate: float


def generator_for(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def network(run: Run, setting: Setting, data: PreparedFolder) -> tuple[PixArtTransformer, torch.optim.Optimizer]:
    """A fresh model of the run's width and its AdamW."""
    example = data.batch(generator_for(0, 0), 1)
    channels, height, width = example.latents.shape[1:]
    base = PixArtConfig(depth=setting.depth, hidden=setting.base_width, heads=setting.base_width // setting.head,
                        channels=channels, caption_width=example.context.shape[2],
                        caption_tokens=example.context.shape[1], base_size=round(math.sqrt(height * width) / 2),
                        position_scale=1.0)
    model, rate = PixArtTransformer(at_width(base, run.width), attend=matmul_attention), 2.0 ** run.log2_rate
    if run.parametrisation == "muP":
        initialize_mup(model, setting.seed, setting.base_width, table_std=setting.base_width ** -0.5)
        groups = mup_parameter_groups(model, setting.base_width, rate)
    else:
        initialize(model, setting.seed)
        groups = [{"params": list(model.parameters()), "lr": rate, "rate_factor": 1.0}]
    return model, torch.optim.AdamW(groups, betas=setting.betas, weight_decay=0.0)


def schedule(step: int, setting: Setting) -> float:
    """Share of the learning rate at a step: a rise, then a straight fall to zero."""
    rise = (step + 1) / max(1, setting.warmup)
    return min(rise, (setting.steps - step) / max(1, setting.steps - setting.warmup))


def train(run: Run, setting: Setting, data: PreparedFolder, device: str) -> dict:
    """Train one model and measure its loss; losses are None where the training diverged."""
    started = time.perf_counter()
    model, optimizer = network(run, setting, data)
    model.to(device).train()
    objective, losses = Diffusion(data), []

    def loss_of(generator: torch.Generator, count: int) -> torch.Tensor:
        batch = data.batch(generator, count).to(torch.device(device))
        with torch.autocast(device, torch.bfloat16, enabled=setting.precision == "bf16"):
            return objective(model, model, batch, generator)

    for step in range(setting.steps):
        loss = loss_of(generator_for(setting.seed, step), setting.batch)
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 2.0 ** run.log2_rate * group["rate_factor"] * schedule(step, setting)
        optimizer.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            return {"loss": None, "train_loss": None, "seconds": time.perf_counter() - started}
    with torch.no_grad():
        shares = [loss_of(generator_for(JUDGING_SEED, part), setting.batch).item()
                  for part in range(math.ceil(setting.judged / setting.batch))]
    final, quarter = sum(shares) / len(shares), losses[-max(1, setting.steps // 4):]
    return {"loss": final if math.isfinite(final) else None, "train_loss": sum(quarter) / len(quarter),
            "seconds": time.perf_counter() - started}


def read_runs(path: Path, setting: Setting) -> dict[Run, float]:
    """Losses of finished runs with this setting, infinite where training diverged; skips an incomplete last line."""
    found: dict[Run, float] = {}
    wanted = json.loads(json.dumps(asdict(setting)))
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if entry["setting"] == wanted:
            found[Run(**entry["run"])] = math.inf if entry["loss"] is None else entry["loss"]
    return found


def append(path: Path, entry: dict) -> None:
    """Add a line and flush it to disk; an incomplete line left by a kill is ended first."""
    torn = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * bool(torn) + json.dumps(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())


def plan(widths: list[int], rates: list[float], setting: Setting) -> Iterator[Run]:
    """All trainings to do, narrow first."""
    for width in sorted(widths):
        for name in PARAMETRISATIONS:
            if width != setting.base_width or name == "standard":
                yield from (Run(name, width, rate) for rate in sorted(rates))


def curves(losses: dict[Run, float], widths: list[int], rates: list[float], setting: Setting) -> dict:
    """{parametrisation: {width: [loss per rate, or None where the run is missing]}}"""
    def name_of(name: str, width: int) -> str:
        return "standard" if width == setting.base_width else name

    return {name: {width: [losses.get(Run(name_of(name, width), width, rate)) for rate in sorted(rates)]
                   for width in sorted(widths)} for name in PARAMETRISATIONS}


def best(values: list[float | None], rates: list[float]) -> tuple[float, float] | None:
    """(log2 of the best rate, its loss) among the finished runs."""
    finished = [(loss, rate) for loss, rate in zip(values, sorted(rates), strict=True) if loss is not None]
    if not finished or math.isinf(min(finished)[0]):
        return None
    loss, rate = min(finished)
    return rate, loss


def ceiling(table: dict) -> float:
    """Where the plot ends: above all losses of the lowest finished rates, far below those of diverged trainings."""
    firsts = [next((loss for loss in values if loss is not None), 1.0) for lines in table.values()
              for values in lines.values()]
    return 1.1 * max((loss for loss in firsts if math.isfinite(loss)), default=1.0)


def draw(table: dict, rates: list[float], setting: Setting, path: Path) -> None:
    """Two panels, one line a width, the best rate of each width marked; an arrow for a loss beyond the top."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4.2), sharey=True)
    top = ceiling(table)
    for panel, (name, lines) in zip(panels, table.items(), strict=True):
        for colour, (width, values) in zip(("C0", "C1", "C2", "C3", "C4", "C5"), lines.items(), strict=False):
            points = [(rate, loss) for rate, loss in zip(sorted(rates), values, strict=True)
                      if loss is not None and math.isfinite(loss)]
            panel.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4, label=f"width {width}")
            beyond = [rate for rate, loss in zip(sorted(rates), values, strict=True) if loss is not None and loss > top]
            panel.plot(beyond, [top] * len(beyond), color=colour, marker="^", markersize=9, linestyle="none",
                       clip_on=False)
            optimum = best(values, rates)
            if optimum is not None:
                panel.plot(*optimum, marker="*", markersize=15, color=colour, markeredgecolor="black")
        panel.set_title(name)
        panel.set_xlabel("log2 of the learning rate")
        panel.grid(alpha=0.3)
        panel.legend(loc="lower left")
    panels[0].set_ylim(top=top)
    panels[0].set_ylabel(f"diffusion loss after {setting.steps} steps")
    figure.suptitle(f"PixArt, {setting.depth} blocks, heads of {setting.head}, batch {setting.batch}; stars: best rate")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def report(table: dict, rates: list[float]) -> None:
    """The numbers behind the plot, and how far the optimum moves between the outer widths."""
    print("| parametrisation | width | " + " | ".join(f"2^{rate:g}" for rate in sorted(rates)) + " | best rate |")
    print("|---" * (len(rates) + 3) + "|")
    for name, lines in table.items():
        found = {width: best(values, rates) for width, values in lines.items()}
        for width, values in lines.items():
            optimum = found[width]
            cells = ["" if loss is None else f"{loss:.4f}" for loss in values]
            print(f"| {name} | {width} | " + " | ".join(cells) + " | "
                  + (f"2^{optimum[0]:g}" if optimum else "none") + " |")
        optima = [each[0] for each in found.values() if each]
        if optima:
            print(f"\n{name}: the best rates span a factor of 2^{max(optima) - min(optima):g}\n")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="prepared folder")
    parser.add_argument("--out", type=Path, required=True, help="PNG; the runs go beside it as .jsonl")
    parser.add_argument("--widths", type=int, nargs="+", default=[96, 192, 384], help="multiples of the head width")
    parser.add_argument("--base-width", type=int, default=None, help="default: the narrowest")
    parser.add_argument("--rates", type=finite_number, nargs="+", default=[-11, -10, -9, -8, -7, -6],
                        help="log2 of each")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--head", type=int, default=48, help="width of a head")
    parser.add_argument("--betas", type=finite_number, nargs=2, default=(0.9, 0.99))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--judged", type=int, default=512, help="images in the final loss")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--draw-only", action="store_true", help="train nothing, draw what is there")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    setting = Setting(args.steps, args.batch, args.warmup, args.depth, args.head, args.base_width or min(args.widths),
                      tuple(args.betas), args.seed, args.precision, args.judged)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    path = args.out.with_suffix(".jsonl")
    losses = read_runs(path, setting)
    todo = [] if args.draw_only else [run for run in plan(args.widths, args.rates, setting) if run not in losses]
    data: Any = PreparedFolder(args.data) if todo else None
    for number, run in enumerate(todo, 1):
        result = train(run, setting, data, args.device)
        append(path, {"run": asdict(run), "setting": asdict(setting), **result})
        losses[run] = math.inf if result["loss"] is None else result["loss"]
        print(f"{number} of {len(todo)}: {run.parametrisation}, width {run.width}, rate 2^{run.log2_rate:g}: "
              f"loss {losses[run]:.4f}, {result['seconds']:.0f} s", flush=True)
    table = curves(losses, args.widths, args.rates, setting)
    draw(table, args.rates, setting, args.out)
    report(table, args.rates)
    print(args.out)


if __name__ == "__main__":
    main()
