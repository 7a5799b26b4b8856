"""All schedules that a search tried, as points of quality over work, with the front that none of them beats."""
from pathlib import Path

from ..files.atomic import replacing
from .search import Trials


def plot_front(trials: Trials, plain: tuple[float, float], path: Path, quality: str) -> None:
    """PNG. plain: loss and work without any reuse. quality: what the loss is."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes, front = figure.subplots(), trials.front()
    tried = list(trials.found.values())
    axes.scatter([plain[1] / work for _, work in tried], [loss for loss, _ in tried], s=8, alpha=0.4, label="tried")
    axes.plot([plain[1] / one.work for one in front], [one.loss for one in front], "o-", color="tab:red", label="front")
    axes.axhline(plain[0], color="grey", linestyle=":", label="nothing reused")
    axes.set(xlabel="times less work", ylabel=quality)
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=120)
