"""Measurements as Markdown tables."""
from collections.abc import Sequence

from torch import Tensor

from .bootstrap import LEVEL, Estimate, estimate, mcnemar, paired_difference, resamples
from .results import REAL, Measured, Row, Sums

SHARES = {"all": "all attributes", "images": "whole images"}
DIFFERENCES = ("all", "images", "shape", "second shape", "second colour", "shape by place", "colour by place")


def results_table(measured: Measured) -> str:
    """Accuracies by the judge, then distances and cost: one row per method."""
    drawn = resamples(measured.about.count)
    return f"{_accuracies(measured, drawn)}\n\n{_distances(measured, drawn)}"


def _accuracies(measured: Measured, drawn: Tensor) -> str:
    """In per cent; the two summaries with half of their interval."""
    sums = [row.sums() for row in measured.rows]
    names = [name for name in sums[0] if name in measured.rows[0].accuracy]
    rows = []
    for row, measures in zip(measured.rows, sums):
        values = {name: estimate(*measures[name], drawn) for name in names}
        rows.append([row.name, *(_percent(values[name], name in SHARES) for name in names)])
    note = (f"{measured.about.count} held-out prompts, per cent read back by judge {measured.about.judge[0]}; "
            f"+-: half of the {100 * LEVEL:.0f} % bootstrap interval over prompts.")
    return f"{markdown(['', *(SHARES.get(name, name) for name in names)], rows)}\n\n{note}"


def _percent(value: Estimate, with_half: bool) -> str:
    return f"{100 * value.value:.1f}" + (f" +- {100 * value.half:.1f}" if with_half else "")


def _distances(measured: Measured, drawn: Tensor) -> str:
    titles = ["", "FID (judge)", "KID (judge)", "PSNR, dB", "SSIM", "judge-LPIPS", "diversity", "passes", "GMACs", "ms"]
    rows = [_distance_row(row, row.sums()) for row in measured.rows]
    notes = ["KID +- its standard error. The row of the real images compares them with those of other scenes."]
    references = {row.reference for row in measured.rows if row.reference}
    notes += [f"PSNR, SSIM and judge-LPIPS against: {', '.join(sorted(references))}."] if references else []
    machines = {row.cost.machine for row in measured.rows if row.cost}
    notes += [f"Time of an image on: {'; '.join(sorted(machines))}."] if machines else []
    return f"{markdown(titles, rows)}\n\n{' '.join(notes)}"


def _distance_row(row: Row, sums: dict[str, Sums]) -> list[str]:
    means = {name: (values.sum() / weights.sum()).item() for name, (values, weights) in sums.items()}
    cells = [row.name, f"{row.fid:.2f}", f"{means['kid']:.3f} +- {row.kid_error():.3f}"]
    for name, digits in (("psnr", 2), ("ssim", 4), ("lpips", 4), ("diversity", 4)):
        cells.append(f"{means[name]:.{digits}f}" if name in means else "")
    if row.cost is None:
        return cells + [""] * 3
    return cells + [f"{row.cost.passes:g}", f"{row.cost.macs / 1e9:.3f}", f"{row.cost.milliseconds:.1f}"]


def differences(measured: Measured, base: str) -> str:
    """Every other method minus `base`, paired by prompt, with intervals; accuracies in percentage points."""
    drawn, start = resamples(measured.about.count), measured.row(base)
    rows, names = [], [name for name in DIFFERENCES if name in start.sums()]
    for row in measured.rows:
        if row.name in (base, REAL):
            continue
        mine, other = row.sums(), start.sums()
        cells = [signed(paired_difference(mine[name], other[name], drawn), 100, 1) for name in names]
        whole = [sums["images"][0].bool() for sums in (mine, other)]
        rows.append([row.name, *cells, signed(paired_difference(mine["kid"], other["kid"], drawn), 1, 3),
                     f"{mcnemar(*whole):.2g}"])
    titles = [f"minus {base}", *(SHARES.get(name, name) for name in names), "KID (judge)", "p (whole images)"]
    note = (f"In brackets the {100 * LEVEL:.0f} % interval of the paired bootstrap over {measured.about.count} "
            "prompts, bold where it leaves out zero. p: exact test of McNemar.")
    return f"{markdown(titles, rows)}\n\n{note}"


def signed(value: Estimate, scale: float, digits: int) -> str:
    """A difference and in brackets its interval, times `scale`, bold if it excludes zero."""
    low, middle, high = (f"{scale * x:+.{digits}f}" for x in (value.low, value.value, value.high))
    return f"**{middle}** ({low} to {high})" if value.clear else f"{middle} ({low} to {high})"


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of cells given as text."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
