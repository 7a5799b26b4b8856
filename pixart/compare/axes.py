"""What a comparison varies: values read from text, and the settings of every cell."""
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..files.prompts import LAST_SEED
from ..sampling.preset import PRESET_METHODS

MOST_CELLS = 256            # cells of one comparison
NO_AXIS = "none"
VALUE_RANGE = re.compile(r"(\d+)\.\.(\d+)")
AxisValue = str | int | float


@dataclass(frozen=True)
class Cell:
    """Everything that one image depends on beside the networks and the latent it starts from."""

    prompt: str
    negative: str
    seed: int
    method: str             # "auto" or one of PRESET_METHODS
    steps: int              # 0: the method's own
    cfg: float              # 0: the method's own
    denoise: float


@dataclass(frozen=True)
class Axis:
    """A setting and the values it takes, in order; the axis "none" has one place and changes nothing."""

    name: str
    values: tuple[AxisValue, ...]

    @property
    def labels(self) -> list[str]:
        """For people: a prompt as it is, else the setting and its value."""
        if self.name in (NO_AXIS, "prompt"):
            return [str(value) for value in self.values]
        return [f"{self.name} {value:g}" if isinstance(value, float) else f"{self.name} {value}"
                for value in self.values]

    def cells(self, cell: Cell) -> list[Cell]:
        """The cell with each of the values."""
        if self.name == NO_AXIS:
            return [cell]
        changed: list[dict[str, Any]] = [{self.name: value} for value in self.values]
        return [replace(cell, **each) for each in changed]


def read_axis(name: str, text: str) -> Axis:
    """An axis from what a person wrote: prompts one a line; else values with commas or line breaks between them.

    Whole numbers may be ranges, as 1..4. ValueError that says what was found and expected.
    """
    if name == NO_AXIS:
        return Axis(NO_AXIS, ("",))
    if name not in AXES:
        raise ValueError(f"unknown axis {name!r}; use {', '.join(AXES)} or {NO_AXIS}")
    parts = [part.strip() for part in (text.splitlines() if name == "prompt" else re.split(r"[,\s]+", text))]
    values = [value for part in parts if part for value in AXES[name](name, part)]
    if not values:
        raise ValueError(f"no values of {name} are given; write {AXIS_EXAMPLES[name]}")
    return Axis(name, tuple(values))


def cell_grid(cell: Cell, columns: Axis, rows: Axis) -> list[list[Cell]]:
    """The cells row by row. ValueError where both axes are one, or there are too many cells."""
    if columns.name == rows.name != NO_AXIS:
        raise ValueError(f"columns and rows are both {rows.name}; choose two settings, or {NO_AXIS} for one of them")
    count = len(columns.values) * len(rows.values)
    if count > MOST_CELLS:
        raise ValueError(f"{count} images are asked for ({len(columns.values)} x {len(rows.values)}), at most "
                         f"{MOST_CELLS} fit on a sheet; give fewer values")
    return [columns.cells(row) for row in rows.cells(cell)]


def whole_values(least: int, most: int) -> Callable[[str, str], list[AxisValue]]:
    """Reads a whole number, or a range of them."""
    def read(name: str, part: str) -> list[AxisValue]:
        ends = VALUE_RANGE.fullmatch(part)
        first, last = (ends[1], ends[2]) if ends else (part, part)
        readable = first.isdecimal() and max(len(first), len(last)) <= 20
        if not (readable and least <= int(first) <= int(last) <= most):
            raise ValueError(f"{name} cannot be {part[:40]!r}; write whole numbers from {least} to {most}, "
                             f"such as {AXIS_EXAMPLES[name]}")
        if int(last) - int(first) >= MOST_CELLS:
            raise ValueError(f"{name} {part[:60]} are {int(last) - int(first) + 1} values; at most {MOST_CELLS} "
                             "images fit on a sheet")
        return list(range(int(first), int(last) + 1))
    return read


def number_values(least: float, most: float) -> Callable[[str, str], list[AxisValue]]:
    """Reads a number."""
    def read(name: str, part: str) -> list[AxisValue]:
        try:
            value = float(part)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise ValueError(f"{name} cannot be {part[:40]!r}; write numbers from {least:g} to {most:g}, such as "
                             f"{AXIS_EXAMPLES[name]}")
        return [value]
    return read


def method_values(name: str, part: str) -> list[AxisValue]:
    """Reads the name of a method."""
    if part not in ("auto", *PRESET_METHODS):
        raise ValueError(f"{name} cannot be {part[:40]!r}; use auto, {', '.join(PRESET_METHODS)}")
    return [part]


# Setting -> what reads one of its values. Ranges are those of PixArt Steps.
AXES: dict[str, Callable[[str, str], list[AxisValue]]] = {
    "prompt": lambda _, part: [part], "seed": whole_values(0, LAST_SEED), "steps": whole_values(1, 200),
    "cfg": number_values(0.1, 30), "method": method_values, "denoise": number_values(0, 1)}
AXIS_EXAMPLES = {"prompt": "one prompt a line", "seed": "1..4 or 1, 5, 9", "steps": "1, 2, 4, 8", "cfg": "1, 1.5, 2",
                 "method": "teacher, tdm", "denoise": "0.4, 0.6, 0.8"}
