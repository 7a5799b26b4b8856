"""Time over size: what a pass takes beside what the machine's measured ceiling would allow."""
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pixart.files.atomic import replacing

from .passes import PASSES


def plot_passes(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """PNG: milliseconds of an image over its tokens, a line for every implementation, data type and batch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for title in dict.fromkeys(map(line_of, rows)):
        points = sorted((row["tokens"], row["ms"] / row["batch"]) for row in rows if line_of(row) == title)
        axis.plot(*zip(*points), marker="o", label=title)
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        ideal = sorted({(row["tokens"], ceiling_of(row)) for row in rows
                        if row["dtype"] == dtype and row.get("of the ceiling %")})
        if ideal:
            axis.plot(*zip(*ideal), linestyle=":", color="grey", label=f"{dtype}, at the measured ceiling")
    axis.set(title=PASSES, xlabel="tokens of an image", ylabel="ms per image", xscale="log", yscale="log")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=120)


def line_of(row: Mapping[str, Any]) -> str:
    return f"{row['implementation']}, {row['dtype']}" + (f", batch {row['batch']}" if row["batch"] > 1 else "")


def ceiling_of(row: Mapping[str, Any]) -> float:
    return row["ms"] * row["of the ceiling %"] / 100 / row["batch"]
