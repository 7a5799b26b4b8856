"""What a stage finds, as lines of JSON: rows of tables, aims, texts."""
import json
import math
from collections.abc import Callable

Cell = str | int | float | bool | None
CHECKS = "Correctness"


class Notes:
    """Writes the results of a stage at once; `write` takes a line."""

    def __init__(self, write: Callable[[str], None], stage: str = "") -> None:
        self.write, self.stage = write, stage

    def note(self, **facts: object) -> None:
        self.write(json.dumps({"stage": self.stage, **facts}, allow_nan=False, default=str))

    def row(self, table: str, **cells: Cell) -> None:
        """One row of the table with this title; the columns are the names of all its rows' cells."""
        self.note(kind="row", table=table, cells={name: finite(value) for name, value in cells.items()})

    def check(self, name: str, case: str, error: float, limit: float) -> None:
        """`error` must not exceed `limit`, and NaN never passes; limit 0 asks for equality to the bit."""
        passed = error <= limit
        self.row(CHECKS, check=name, case=case, error=error, limit=limit, verdict="ok" if passed else "FAILED")

    def holds(self, name: str, case: str, true: bool, found: str = "") -> None:
        self.row(CHECKS, check=name, case=case, error=found or None, verdict="ok" if true else "FAILED")

    def absent(self, name: str, reason: str) -> None:
        self.row(CHECKS, check=name, verdict=f"not run: {reason}")

    def failed(self, name: str, error: Exception) -> None:
        first = (str(error).strip().splitlines() or [""])[0][:300]
        self.row(CHECKS, check=name, verdict=f"FAILED: {type(error).__name__}: {first}")

    def aim(self, aim: str, figure: float, limit: float, unit: str = "", at_most: bool = True) -> None:
        """A figure beside what it should be at most, or at least."""
        met = figure <= limit if at_most else figure >= limit
        self.note(kind="aim", aim=aim, figure=finite(figure), limit=limit, unit=unit, at_most=at_most, met=met)

    def text(self, title: str, body: str) -> None:
        self.note(kind="text", title=title, body=body)


def finite(value: Cell) -> Cell:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
