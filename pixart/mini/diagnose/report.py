"""What the four trials found, as tables, a plot and a JSON file."""
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...files.atomic import replacing
from ..measure.bootstrap import estimate, resamples
from ..measure.plot import can_plot
from ..measure.results import Row
from ..measure.tables import SHARES, markdown
from .finish import FINISH_STEPS, signal_to_noise
from .loss import Bin

if TYPE_CHECKING:
    from matplotlib.axes import Axes

logger = logging.getLogger(__name__)

SHOWN_QUESTIONS = ("images", "shape", "second shape", "second colour", "texture", "colour", "shape by place",
                   "colour by place")       # in the plot, where they were asked for


@dataclass(frozen=True)
class Diagnosis:
    """Results of `diagnose`."""

    count: int                              # held-out prompts
    guidance: float
    judge: str
    finished: dict[int, Row]                # by the timestep the real images were noised to; 0: autoencoder alone
    real: Row
    probed: dict[str, tuple[float, float]]  # by attribute: shares read from the features of training and held-out texts
    bins: list[Bin]


def tables(found: Diagnosis) -> str:
    """Markdown, shares in per cent."""
    return "\n\n".join((_finished(found), _probed(found), _losses(found)))


def _finished(found: Diagnosis) -> str:
    drawn = resamples(found.count)
    rows = []
    for title, row in [("real", found.real), *((str(start), row) for start, row in found.finished.items())]:
        values = {name: estimate(*row.sums()[name], drawn) for name in row.accuracy}
        cells = [f"{100 * value.value:.1f}" + (f" +- {100 * value.half:.1f}" if name in SHARES else "")
                 for name, value in values.items()]
        noise = f"{signal_to_noise(int(title)):.2g}" if title not in ("real", "0") else "-"
        rows.append([title, noise, *cells])
    note = (f"{found.count} held-out prompts, read by judge {found.judge[0]}: real images encoded, noised to "
            f"timestep t0 and finished by the teacher in {FINISH_STEPS} DDIM steps, guidance {found.guidance:g}. "
            "t0 = 0: the autoencoder alone. SNR: ratio of the variances of signal and noise.")
    return f"{markdown(['t0', 'SNR', *(SHARES.get(name, name) for name in found.real.accuracy)], rows)}\n\n{note}"


def _probed(found: Diagnosis) -> str:
    rows = [[name, f"{100 * seen:.1f}", f"{100 * held:.1f}"] for name, (seen, held) in found.probed.items()]
    note = ("Per cent of the attributes that a probe reads from the text features: for every attribute one query whose "
            "softmax over the tokens averages their features, then a linear classifier.")
    return f"{markdown(['attribute', 'training captions', 'held-out captions'], rows)}\n\n{note}"


def _losses(found: Diagnosis) -> str:
    rows = [[f"{one.first}-{one.last}", f"{one.signal_to_noise:.2g}", f"{one.loss:.3g} +- {one.error:.2g}",
             f"{one.without_text:.3g}", f"{100 * (one.without_text / one.loss - 1):.0f}"] for one in found.bins]
    note = "Mean squared error of the teacher's noise prediction on real held-out images, +- its standard error."
    titles = ["timesteps", "SNR", "loss", "with the empty prompt", "higher by, %"]
    return f"{markdown(titles, rows)}\n\n{note}"


def write_diagnosis(found: Diagnosis, folder: Path) -> list[Path]:
    """diagnosis.json, diagnosis.md and, where matplotlib is, diagnosis.png into `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    made = [folder / "diagnosis.json", folder / "diagnosis.md"]
    plain = {"format": "pixart-mini-diagnosis-1", "count": found.count, "guidance": found.guidance,
             "judge": found.judge, "finished": {"real": found.real.accuracy, **{
                 str(start): row.accuracy for start, row in found.finished.items()}},
             "probed": {name: {"training": seen, "held-out": held} for name, (seen, held) in found.probed.items()},
             "bins": [asdict(one) for one in found.bins]}
    with replacing(made[0]) as beside:
        beside.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    made[1].write_text(tables(found) + "\n", encoding="utf-8")
    if not can_plot():
        logger.warning("no plot: matplotlib is missing; install it and diagnose again")
        return made
    _plot(found, folder / "diagnosis.png")
    return [*made, folder / "diagnosis.png"]


def _plot(found: Diagnosis, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    curve, bars, errors = figure.subplots(1, 3)
    starts = list(found.finished)
    for name in SHOWN_QUESTIONS:
        if name in found.real.accuracy:
            curve.plot(starts, [100 * row.accuracy[name] for row in found.finished.values()], "o-", label=name)
    curve.set(xlabel="noised to timestep t0, then finished", ylabel="read by the judge, %")
    curve.legend(fontsize="small")
    _bars(bars, found.probed)
    middle = [(one.first + one.last) / 2 for one in found.bins]
    errors.plot(middle, [one.loss for one in found.bins], "o-", label="with the prompt")
    errors.plot(middle, [one.without_text for one in found.bins], "o--", label="with the empty prompt")
    errors.set(xlabel="timestep", ylabel="squared error of the noise", yscale="log")
    errors.legend(fontsize="small")
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=120)


def _bars(axis: "Axes", probed: Mapping[str, tuple[float, float]]) -> None:
    names = list(probed)
    axis.barh(names, [100 * held for _, held in probed.values()])
    axis.set(xlabel="read from the text features, held-out captions, %", xlim=(0, 100))
    axis.invert_yaxis()
