"""Quality over speed: each method as a point. A method at several settings has one colour and one line in the legend,
and its settings stand beside the points."""
import re
from importlib.util import find_spec
from pathlib import Path

from ...files.atomic import replacing
from .bootstrap import estimate, resamples
from .results import Measured

LEGEND_ROWS = 18            # that fit into the height of the plot
MARKERS = "osD^v"           # with ten colours: fifty combinations
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def can_plot() -> bool:
    """Whether matplotlib is installed; tables and files of results work without it."""
    return find_spec("matplotlib") is not None


def settings_of_methods(names: list[str]) -> dict[str, dict[str, str]]:
    """Names that differ in one number are one method at several settings: `steps 2x` and `steps 4x` are
    `{"steps 2 to 4x": {"steps 2x": "2", "steps 4x": "4"}}`. Every other name is a method of its own, without a setting.
    """
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(NUMBER.sub("#", name), []).append(name)
    methods: dict[str, dict[str, str]] = {}
    for members in alike.values():
        numbers = [NUMBER.findall(name) for name in members]
        differ = [place for place, values in enumerate(zip(*numbers)) if len(set(values)) > 1]
        if len(differ) != 1:
            methods |= {name: {name: ""} for name in members}
            continue
        values = [each[differ[0]] for each in numbers]
        start, end = list(NUMBER.finditer(members[0]))[differ[0]].span()
        legend = f"{members[0][:start]}{min(values, key=float)} to {max(values, key=float)}{members[0][end:]}"
        methods[legend] = dict(zip(members, values))
    return methods


def quality_speed(measured: Measured, path: Path) -> None:
    """PNG: whole images (every attribute correct) over MACs and over time per image, both logarithmic."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    drawn = resamples(measured.about.count)
    shares = {row.name: estimate(*row.sums()["images"], drawn) for row in measured.rows}
    costs = {row.name: row.cost for row in measured.rows}
    methods = settings_of_methods(list(shares))
    columns = -(-len(methods) // LEGEND_ROWS)
    figure = Figure(figsize=(10 + 2 * columns, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    for number, (legend, settings) in enumerate(methods.items()):
        colour, marker = f"C{number % 10}", MARKERS[(number + number // 10) % len(MARKERS)]
        for name, setting in settings.items():
            share, cost = shares[name], costs[name]
            height, reach = 100 * share.value, [[100 * (share.value - share.low)], [100 * (share.high - share.value)]]
            for axis, x in zip(axes, (cost.macs / 1e9, cost.milliseconds) if cost else ()):
                axis.errorbar(x, height, yerr=reach, fmt=marker, color=colour, capsize=3, label=legend)
                axis.annotate(setting, (x, height), (5, 3), textcoords="offset points", size="small", color=colour)
            if cost is None:
                axes[0].axhline(height, color="grey", linestyle=":")
                axes[1].axhline(height, color="grey", linestyle=":", label=name)
    for axis, title in zip(axes, ("GMACs per image", "ms per image")):
        axis.set(xlabel=title, xscale="log")
        for each in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
            each(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.7)))       # 20, not 2 x 10^1
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="whole images, %, with 95 % interval")
    machines = sorted({cost.machine for cost in costs.values() if cost})
    axes[1].set_title("; ".join(machines), fontsize="small")
    lines = {text: handle for handle, text in zip(*axes[1].get_legend_handles_labels())}
    axes[1].legend(lines.values(), lines, fontsize="small", loc="center left", bbox_to_anchor=(1.02, 0.5),
                   ncols=columns)
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=120)
