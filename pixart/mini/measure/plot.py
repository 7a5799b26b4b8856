"""Quality over speed: every way of drawing as a point."""
from importlib.util import find_spec
from pathlib import Path

from ...atomic import replacing
from .bootstrap import estimate, resamples
from .results import Measured

LEGEND_ROWS = 18            # that the height of the plot has room for
MARKERS = "osD^v"           # a new one for every ten rows, which is how many colours there are


def can_plot() -> bool:
    """Is matplotlib here? Tables and files of results need it not."""
    return find_spec("matplotlib") is not None


def quality_speed(measured: Measured, path: Path) -> None:
    """PNG: share of wholly right images over multiplications and over time of an image, both logarithmic."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    columns = -(-len(measured.rows) // LEGEND_ROWS)
    figure = Figure(figsize=(9 + 2 * columns, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    drawn = resamples(measured.about.count)
    axes = figure.subplots(1, 2, sharey=True)
    for number, row in enumerate(measured.rows):
        value = estimate(*row.sums()["images"], drawn)
        height = 100 * value.value
        if row.cost is None:
            for axis in axes:
                axis.axhline(height, color="grey", linestyle=":", label=row.name)
            continue
        reach = [[height - 100 * value.low], [100 * value.high - height]]
        for axis, x in zip(axes, (row.cost.macs / 1e9, row.cost.milliseconds)):
            axis.errorbar(x, height, yerr=reach, fmt=MARKERS[number // 10 % len(MARKERS)], capsize=3, label=row.name)
    for axis, title in zip(axes, ("GMACs per image", "ms per image")):
        axis.set(xlabel=title, xscale="log")
        for each in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
            each(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.7)))       # 20, not 2 x 10^1
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="wholly right images, %, with 95 % interval")
    machines = sorted({row.cost.machine for row in measured.rows if row.cost})
    axes[1].set_title("; ".join(machines), fontsize="small")
    axes[1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1.02, 0.5), ncols=columns)
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=120)
