"""What a prepared folder knows about its own making: settings, and skipped images."""
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from ..files.atomic import replacing
from .items import Item

SETTINGS_FILE, SKIPPED_FILE = "prepare.json", "skipped.jsonl"


@dataclass(frozen=True)
class Skipped:
    """An image that was left out and why; `stamp` changes with its files where only decoding it showed the fault."""

    key: str
    reason: str
    stamp: list[int] | None = None


def stamp_of(item: Item) -> list[int] | None:
    """Sizes and times of change of the files of an item, None where one is gone."""
    files = [part for part in (item.features, item.moments, item.hint) if part]
    files += [item.image.path] if item.image else []
    try:
        status = [file.stat() for file in files]
    except OSError:
        return None
    return [number for one in status for number in (one.st_size, one.st_mtime_ns)]


def write_skipped(folder: Path, skipped: Iterable[Skipped]) -> None:
    """One JSON object a line: key, reason, stamp."""
    with replacing(folder / SKIPPED_FILE) as beside, beside.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in skipped)


def read_skipped(folder: Path) -> dict[str, Skipped]:
    """What the last run skipped, by key; empty before the first. ValueError for a damaged file."""
    path = folder / SKIPPED_FILE
    if not path.exists():
        return {}
    try:
        found = [Skipped(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, its images are then tried again") from error
    return {one.key: one for one in found}


def settle(folder: Path, settings: dict[str, object], begun: bool) -> None:
    """Refuse to go on in a folder that was begun with other settings; None stands for not used in this run.

    begun: whether anything in the folder was made by the settings that are written there; those of a first run that
    failed are replaced.
    """
    path = folder / SETTINGS_FILE
    try:
        before = json.loads(path.read_text("utf-8")) if begun and path.exists() else {}
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); prepare into a new folder") from error
    for name, value in settings.items():
        if None not in (value, before.get(name)) and value != before[name]:
            raise ValueError(f"{folder} was begun with {name} {before[name]}, now it is {value}; use the same, or "
                             "prepare into another folder")
    merged = {**before, **{name: value for name, value in settings.items() if value is not None}}
    if merged != before:
        with replacing(path) as beside:
            beside.write_text(json.dumps(merged, indent=1), "utf-8")
