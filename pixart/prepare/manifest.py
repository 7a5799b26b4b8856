"""A list of images and captions in one file: JSON lines or comma-separated values."""
import json
from collections.abc import Iterator
from pathlib import Path

from ..files.delimited import numbered_rows
from .items import Item, Place

IMAGE = ("path", "file_name", "image", "file", "filename", "image_path")
CAPTION = ("caption", "text", "prompt")
MORE_VALUES = "it has more values than the first line has columns; put quotes around a caption with commas in it"


def manifest_items(path: Path) -> Iterator[Item]:
    """Items of a .jsonl, .csv or .tsv file; image paths are relative to its folder, or absolute.

    The image stands under the first of IMAGE that is there, the caption under the first of CAPTION. ValueError for
    a table without these columns; a line that cannot be read becomes an item with a fault.
    """
    rows = _table(path) if path.suffix.lower() in (".csv", ".tsv") else _lines(path)
    for number, row in rows:
        yield _item(path, number, row)


def _item(path: Path, number: int, row: object) -> Item:
    where = f"{path.name}, line {number}"
    if not isinstance(row, dict):
        return Item(where, fault=row if isinstance(row, str) else "it is not a JSON object")
    name, caption = (next((row[key] for key in keys if row.get(key) is not None), None) for keys in (IMAGE, CAPTION))
    if not isinstance(name, str) or not name:
        return Item(where, fault=f"it names no image (looked for {', '.join(IMAGE)})")
    if not isinstance(caption, str):
        return Item(name, fault=f"it has no caption ({where}; looked for {', '.join(CAPTION)})")
    return Item(name, caption.strip(), Place(path.parent / name))


def _lines(path: Path) -> Iterator[tuple[int, object]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield number, json.loads(line.decode("utf-8-sig"))
                except RecursionError:
                    yield number, "it is JSON nested too deeply"
                except ValueError as error:
                    yield number, f"it is not JSON: {error}"


def _table(path: Path) -> Iterator[tuple[int, object]]:
    tabs = path.suffix.lower() == ".tsv"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = numbered_rows(file, "\t" if tabs else ",", strict=not tabs)
            names = next(table, (1, []))[1]
            for what in (IMAGE, CAPTION):
                if not set(what) & set(names):
                    raise ValueError(f"the first line names the columns {', '.join(names) or 'none'}; expected one of "
                                     f"{', '.join(what)}")
            for line, values in table:
                yield line, MORE_VALUES if len(values) > len(names) else dict(zip(names, values))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a UTF-8 table: {error}; save it as UTF-8") from error
    except ValueError as error:
        raise ValueError(f"{error}: {path}") from error
