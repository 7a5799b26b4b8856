"""Checked reading of JSON: config.json, indices, headers, settings of adapters.

No value is trusted: each is checked for type and range, and an error names its field and file.
"""
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .errors import CheckpointError

LARGEST_JSON = 16 << 20     # bytes of JSON; the index of a model with 10,000 tensors has about one million
SHOWN_CHARACTERS = 40       # characters of a wrong value that a message repeats

Check = Callable[[object], str]
"""What a value should have been, in words; "" if it is right."""


def whole(low: int, high: int) -> Check:
    """A whole number in low..high."""
    def check(value: object) -> str:
        right = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        return "" if right else f"a whole number from {low} to {high}"
    return check


def number(low: float, high: float) -> Check:
    """A finite number in low..high, whole or not."""
    def check(value: object) -> str:
        right = isinstance(value, (int, float)) and not isinstance(value, bool)
        return "" if right and _within(value, low, high) else f"a number from {low:g} to {high:g}"
    return check


def _within(value: Any, low: float, high: float) -> bool:
    return low <= value <= high and (isinstance(value, int) or math.isfinite(value))


def flag(value: object) -> str:
    """True or false."""
    return "" if isinstance(value, bool) else "true or false"


def text(value: object) -> str:
    """Any text."""
    return "" if isinstance(value, str) else "a text"


def line(most: int) -> Check:
    """A text of one line, of 1 to `most` characters."""
    def check(value: object) -> str:
        right = isinstance(value, str) and 0 < len(value) <= most and value.isprintable()
        return "" if right else f"a text of one line and at most {most} characters"
    return check


def table(value: object) -> str:
    """Named entries, to be checked on their own."""
    return "" if isinstance(value, Mapping) else "a table"


def one_of(*values: str) -> Check:
    """One of these texts."""
    def check(value: object) -> str:
        return "" if isinstance(value, str) and value in values else f"one of {', '.join(values)}"
    return check


def optional(check: Check) -> Check:
    """What `check` takes, or null."""
    def checked_or_null(value: object) -> str:
        wanted = "" if value is None else check(value)
        return f"{wanted}, or null" if wanted else ""
    return checked_or_null


def list_of(check: Check, most: int) -> Check:
    """A list of at most `most` values that all pass `check`."""
    def check_all(value: object) -> str:
        if not isinstance(value, list) or len(value) > most:
            return f"a list of at most {most} values"
        wrong = next((wanted for each in value if (wanted := check(each))), "")
        return f"a list in which each is {wrong}" if wrong else ""
    return check_all


def checked_entries(entries: Mapping[str, object], checks: Mapping[str, Check], path: Path,
                    where: str) -> dict[str, Any]:
    """The entries that `checks` names, as far as they are there. Raises CheckpointError that names field and file.

    where: what holds them, for messages, such as "config.json".
    """
    for name, check in checks.items():
        wanted = check(entries[name]) if name in entries else ""
        if wanted:
            raise CheckpointError(path, f"{name} is {shown(entries[name])} in {where}", f"{wanted} there")
    return {name: entries[name] for name in checks if name in entries}


def shown(value: object) -> str:
    """A value as a message repeats it: short, whatever it is."""
    if isinstance(value, int) and not -10 ** 30 < value < 10 ** 30:
        return "a number of more than 30 digits"
    if isinstance(value, (list, dict)):
        return f"a {'list' if isinstance(value, list) else 'table'} of {len(value)}"
    written = repr(value)
    return written if len(written) <= SHOWN_CHARACTERS else f"{written[:SHOWN_CHARACTERS]}..."


def parse_json(written: str | bytes, path: Path, where: str) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError for everything else: damaged, nested too deeply, of another kind."""
    content = parse_value(written, path, where, "a JSON object")
    if not isinstance(content, dict):
        raise CheckpointError(path, f"{where} is a JSON {type(content).__name__}", "a JSON object")
    return content


def parse_value(written: str | bytes, path: Path, where: str, expected: str) -> Any:
    """Any JSON. Raises CheckpointError where it is damaged or nested too deeply."""
    try:
        return json.loads(written)
    except RecursionError:
        raise CheckpointError(path, f"{where} is nested too deeply", expected) from None
    except ValueError as error:
        raise CheckpointError(path, f"{where} is not readable as JSON ({short(error)})", expected,
                              "Get the file again.") from error


def read_json(path: Path) -> dict[str, Any]:
    """A file with one JSON object."""
    size = path.stat().st_size
    if size > LARGEST_JSON:
        raise CheckpointError(path, f"{path.name} has {size} bytes", f"JSON of at most {LARGEST_JSON} bytes")
    return parse_json(path.read_bytes(), path, path.name)


def short(error: Exception) -> str:
    """First line of an error's text, cut to fit a message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
