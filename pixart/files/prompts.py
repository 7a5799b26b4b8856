"""Lists of prompts in a file: plain text, CSV or JSON lines."""
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..resolution import LEAST_SIDE, MOST_SIDE
from ..weights.settings import short, shown
from .delimited import numbered_rows

PROMPT_SUFFIXES = (".txt", ".csv", ".jsonl")
MOST_BYTES = 64 * 2 ** 20
MOST_CHARACTERS = 100_000           # of one line
LAST_SEED = 2 ** 64 - 1
LONGEST_NUMBER = 40                 # characters


@dataclass(frozen=True)
class PromptLine:
    """One image to generate; None where the file does not say. line: its number in the file, from 1."""

    line: int
    prompt: str
    negative: str = ""
    seed: int | None = None
    width: int | None = None        # pixels
    height: int | None = None


def read_prompts(path: str | Path) -> list[PromptLine]:
    """All prompts of a file, in its order.

    .txt: one a line, empty lines are left out. .csv: a header that names `prompt`. .jsonl: a text or an object a line.
    The last two may have negative, seed, width and height; other columns are ignored. Raises ValueError with the
    number of the line, FileNotFoundError.
    """
    path = Path(path)
    if path.is_file() and path.suffix.lower() not in PROMPT_SUFFIXES:
        raise ValueError(f"a list of prompts ends in {', '.join(PROMPT_SUFFIXES)}, not {path.suffix!r}: {path}")
    text = _written(path, "list of prompts")
    try:
        rows = {".txt": text_rows, ".csv": csv_rows, ".jsonl": json_rows}[path.suffix.lower()](text)
        found = [prompt_line(number, row) for number, row in rows]
    except ValueError as error:
        raise ValueError(f"{error}: {path}") from error
    if not found:
        raise ValueError(f"the list holds no prompt: {path}")
    return found


def read_lines(path: Path, what: str) -> list[str]:
    """The non-empty lines of a text file, stripped; what: what they are, for messages.

    Raises FileNotFoundError, and ValueError for a file without any, a large one, or one that is not UTF-8.
    """
    found = [line.strip() for line in _written(path, f"text file with {what}").splitlines() if line.strip()]
    if not found:
        raise ValueError(f"there are no {what} in this file; write one a line: {path}")
    return found


def _written(path: Path, what: str) -> str:
    """The text of a file, called `what` in errors. Raises as its callers document."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no {what} at this place: {path}")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"the {what} is larger than {MOST_BYTES // 2 ** 20} MB; split it: {path}")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"the {what} is not UTF-8 (byte {error.start}); save it as UTF-8: {path}") from error


def text_rows(text: str) -> list[tuple[int, dict[str, Any]]]:
    return [(number, {"prompt": line.strip()}) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def csv_rows(text: str) -> list[tuple[int, dict[str, Any]]]:
    table = numbered_rows(io.StringIO(text, newline=""))
    names = [name.strip().lower() for name in next(table, (1, []))[1]]
    if "prompt" not in names:
        raise ValueError(f"the first line names no column prompt, only {', '.join(names) or 'nothing'}; columns are "
                         "separated by commas")
    if len(set(names)) < len(names):
        raise ValueError(f"the first line names a column twice, {max(names, key=names.count)}")
    rows = []
    for line, values in table:
        if len(values) > len(names):
            raise ValueError(f"line {line} has more values than the first line has columns; put quotes around a "
                             "prompt with commas in it")
        rows.append((line, {name: value or None for name, value in zip(names, values)}))
    return rows


def json_rows(text: str) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except RecursionError:
            raise ValueError(f"line {number} is JSON nested too deeply") from None
        except ValueError as error:
            raise ValueError(f"line {number} is not JSON ({short(error)})") from error
        rows.append((number, {"prompt": row} if isinstance(row, str) else row))
    return rows


def prompt_line(number: int, row: Any) -> PromptLine:
    """One row, checked."""
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise ValueError(f"line {number} has no prompt; expected a text, or an object with \"prompt\"")
    negative = row.get("negative") or ""
    if not isinstance(negative, str) or max(len(negative), len(row["prompt"])) > MOST_CHARACTERS:
        raise ValueError(f"line {number} has a prompt that is not a text of at most {MOST_CHARACTERS} characters")
    seed = whole_number(row, "seed", number, 0, LAST_SEED)
    width, height = (whole_number(row, name, number, LEAST_SIDE, MOST_SIDE) for name in ("width", "height"))
    if (width is None) != (height is None):
        raise ValueError(f"line {number} has only one of width and height; give both, or none")
    return PromptLine(number, row["prompt"], negative, seed, width, height)


def whole_number(row: dict[str, Any], name: str, number: int, least: int, most: int) -> int | None:
    given = row.get(name)
    if given is None:
        return None
    exact = isinstance(given, int) and not isinstance(given, bool)
    digits = isinstance(given, str) and len(given) <= LONGEST_NUMBER and given.strip().isdecimal()
    value = given if exact else int(given) if digits else -1
    if not least <= value <= most:
        raise ValueError(f"line {number} has {name} {shown(given)}; expected a whole number from {least} to {most}")
    return value
