"""What is left of an optimisation: its noise, its log, and a plot of the rewards."""
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..files.atomic import replacing
from ..weights import CheckpointError, Kind, check_finite, check_floating, open_weights
from ..weights.safetensors_file import write_tensors
from .optimise import Iteration, OptimisedNoise

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOISE_FORMAT = "pixart-noise-1"
NOISE_FILE = Kind("noise, written by python -m pixart reno")


def save_noise(path: Path, noise: Tensor, about: Mapping[str, object]) -> Path:
    """Noise (B, C, h, w) as safetensors, and what it was made for."""
    write_tensors(path, {"noise": noise.float().cpu()}, {"format": NOISE_FORMAT, "about": json.dumps(dict(about))})
    return path


def load_noise(path: str | Path) -> Tensor:
    """What `save_noise` wrote, (B, C, h, w) float32. CheckpointError, a ValueError, or its subclass
    CheckpointNotFound, a FileNotFoundError, for anything else."""
    weights = open_weights(path, NOISE_FILE)
    if weights.metadata.get("format") != NOISE_FORMAT:
        raise CheckpointError(weights.path, "a file that holds no saved noise", NOISE_FILE.expected)
    noise = weights.tensors.get("noise")
    if noise is None or noise.ndim != 4 or noise.numel() == 0:
        found = "no noise" if noise is None else f"noise of shape {tuple(noise.shape)}"
        raise CheckpointError(weights.path, found, f"(B, C, h, w), {NOISE_FILE.expected}", "The file is damaged.")
    check_floating("noise", noise, weights.path, NOISE_FILE.expected)
    check_finite("noise", noise, weights.path, NOISE_FILE.expected)
    return noise.float().clone()


def save_log(path: Path, found: OptimisedNoise, about: Mapping[str, object]) -> Path:
    """JSON: what was asked for, and every iteration."""
    with replacing(path) as beside:
        beside.write_text(json.dumps({**about, "best": found.total.tolist(), "stopped": found.stopped,
                                      "iterations": [asdict(each) for each in found.history]}, indent=1) + "\n",
                          encoding="utf-8")
    return path


def history_summary(history: Sequence[Iteration], image: int = 0) -> str:
    """One line: where the total began, where it came to and at which iteration."""
    totals = [each.total[image] for each in history]
    best = max(range(len(history)), key=lambda i: (totals[i] == totals[i], totals[i]))
    dropped = sum(each.dropped[image] for each in history)
    return (f"reward {totals[0]:.4g} -> {totals[best]:.4g} at iteration {history[best].number} of {len(history)}"
            + (f"; {dropped} dropped, not finite" if dropped else ""))


def plot(path: Path, history: Sequence[Iteration], weights: Mapping[str, float], image: int = 0) -> Path:
    """PNG of the total, the best so far, each reward times its weight, and the length of the noise."""
    figure = curves(history, weights, image)
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=110)
    return path


def curves(history: Sequence[Iteration], weights: Mapping[str, float], image: int) -> "Figure":
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a plot of the rewards needs matplotlib: pip install matplotlib") from error

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    reward, length = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    numbers = [each.number for each in history]
    reward.plot(numbers, [each.total[image] for each in history], ".-", label="total")
    reward.plot(numbers, [each.best[image] for each in history], "--", color="grey", label="best so far")
    if len(weights) > 1:
        for name, weight in weights.items():
            reward.plot(numbers, [weight * each.scores[name][image] for each in history], alpha=0.7,
                        label=f"{weight:g} {name}")
    reward.set(ylabel="reward")
    reward.legend()
    length.plot(numbers, [each.norm[image] for each in history], color="tab:green")
    length.set(xlabel="iteration", ylabel="length of the noise")
    for axes in (reward, length):
        axes.grid(alpha=0.3)
    return figure
