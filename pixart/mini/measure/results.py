"""What was measured, prompt by prompt, in a JSON file: so that rows of different runs fit into one table."""
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...files.atomic import replacing
from .accuracy import Answers
from .cost import Cost

REAL = "real images"                # name of the row of the renderer's own images
RESULTS_FORMAT = "pixart-mini-measured-1"
Sums = tuple[Tensor, Tensor]          # values and weights of all prompts: a metric is sum(values) / sum(weights)


@dataclass(frozen=True)
class About:
    """What the rows of a file were measured on; rows are comparable where `prompts` and `judge` agree."""

    count: int
    seed: int
    crowded: bool
    prompts: str                    # digest of the captions
    judge: str                        # a or b, and a digest of its file
    judge_accuracy: float             # share of all attributes of real images that it reads correctly


@dataclass(frozen=True)
class Row:
    """One method. Values per prompt are in the order of the prompts; None was not measured."""

    name: str
    answers: tuple[str, ...]                    # see `Answers.text`
    fid: float
    kid: tuple[float, ...]                      # see `kernel_distances`
    reference: str | None = None                # name of the row that psnr, ssim and lpips compare with
    psnr: tuple[float, ...] | None = None       # dB
    ssim: tuple[float, ...] | None = None
    lpips: tuple[float, ...] | None = None      # judge-LPIPS
    diversity: tuple[float, ...] | None = None  # of the first prompts only
    cost: Cost | None = None

    @property
    def accuracy(self) -> dict[str, float]:
        """Correct share of each attribute, of all attributes as "all", of whole images (all correct) as "images"."""
        return Answers.parse(self.answers).shares()

    def sums(self) -> dict[str, Sums]:
        """All metrics except FID, by name."""
        measured = Answers.parse(self.answers).counts()
        for name in ("kid", "psnr", "ssim", "lpips", "diversity"):
            values = getattr(self, name)
            if values is not None:
                padded = torch.zeros(len(self.answers), dtype=torch.float64)
                padded[:len(values)] = torch.tensor(values, dtype=torch.float64)
                measured[name] = (padded, (torch.arange(len(padded)) < len(values)).double())
        return measured

    def kid_error(self) -> float:
        """Standard error of the kernel distance."""
        values = torch.tensor(self.kid, dtype=torch.float64)
        return (values.std() / math.sqrt(len(values))).item()


@dataclass(frozen=True)
class Measured:
    """Rows that were measured on the same prompts by the same judge."""

    about: About
    rows: tuple[Row, ...] = field(default=())

    def row(self, name: str) -> Row:
        for row in self.rows:
            if row.name == name:
                return row
        raise ValueError(f"no row {name!r}; there are {', '.join(row.name for row in self.rows)}")

    def save(self, path: Path) -> None:
        """JSON; numbers in five digits."""
        with replacing(path) as beside:
            beside.write_text(json.dumps({"format": RESULTS_FORMAT, "about": asdict(self.about),
                                          "rows": [_plain(row) for row in self.rows]}) + "\n", encoding="utf-8")


def _plain(row: Row) -> dict[str, Any]:
    plain = asdict(row)
    for name, value in plain.items():
        if isinstance(value, tuple) and value and isinstance(value[0], float):
            plain[name] = [float(f"{number:.5g}") for number in value]
    return plain


def read_measured(path: Path) -> Measured:
    """Reads what `Measured.save` wrote. FileNotFoundError or ValueError, naming the file, for anything else."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; give the JSON file that mini evaluate --out wrote")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != RESULTS_FORMAT:
            raise ValueError(f"format {content['format']!r}, expected {RESULTS_FORMAT!r}")
        return Measured(About(**content["about"]), tuple(_row(**row) for row in content["rows"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"not a file of results of mini evaluate ({error!r}); measure again: {path}") from error


def _row(**fields: Any) -> Row:
    listed: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value
                              for name, value in fields.items()}
    return Row(**listed | {"cost": fields["cost"] and Cost(**fields["cost"])})


def chained(parts: Sequence[Sums]) -> Sums:
    """One metric of several trainings, as if each had drawn prompts of its own."""
    return torch.cat([values for values, _ in parts]), torch.cat([weights for _, weights in parts])


def merged(parts: Sequence[tuple[str, Measured]]) -> Measured:
    """All rows of (name of the file, results) together.

    A row that is the same in several parts is kept once; where rows of one name differ, the later gets its file's name
    added. ValueError where prompts or judge differ.
    """
    first_name, first = parts[0]
    rows = list(first.rows)
    for name, part in parts[1:]:
        for what in ("prompts", "judge"):
            mine, other = getattr(first.about, what), getattr(part.about, what)
            if mine != other:
                raise ValueError(f"results of different {what} cannot be compared ({mine} and {other}); measure both "
                                 f"with the same --count, --seed, --crowded and judge: {first_name}, {name}")
        for row in part.rows:
            same = [known for known in rows if known.name == row.name]
            if not same:
                rows.append(row)
            elif replace(same[0], cost=row.cost) != row:
                rows.append(replace(row, name=f"{row.name} ({name})"))
    return Measured(first.about, tuple(rows))
