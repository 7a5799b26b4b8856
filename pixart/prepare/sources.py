"""From the paths a user names to items: which kind of source each is, and names that differ."""
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from .archive import archive_items
from .folder import IMAGES, folder_items
from .items import Item
from .manifest import manifest_items
from .official import metadata_files, official_items

SOURCE_KINDS = ("a folder of images, .jsonl, .csv, .tsv, .tar, or a folder or .json file in the layout of "
                "the official code")


def items_of(sources: Iterable[Path], family: str, resolution: int) -> Iterator[Item]:
    """All items of all sources in a fixed order. A key that occurs again gets `#2`, `#3`, ... at its end.

    FileNotFoundError and ValueError for sources that cannot be read at all.
    """
    times: dict[str, int] = {}
    for source in sources:
        for item in _of_one(source, family, resolution):
            times[item.key] = times.get(item.key, 0) + 1
            yield item if times[item.key] == 1 else replace(item, key=f"{item.key}#{times[item.key]}")


def _of_one(source: Path, family: str, resolution: int) -> Iterator[Item]:
    if source.is_dir():
        yield from _of_folder(source, family, resolution)
    elif not source.is_file():
        raise FileNotFoundError(f"no source {source}; expected {SOURCE_KINDS}")
    elif source.suffix.lower() == ".tar":
        yield from archive_items(source)
    elif source.suffix.lower() in (".jsonl", ".ndjson", ".csv", ".tsv"):
        yield from manifest_items(source)
    elif source.suffix.lower() == ".json":
        yield from official_items(source, family, resolution)
    else:
        raise ValueError(f"{source} is no source of images that is known; expected {SOURCE_KINDS}")


def _of_folder(folder: Path, family: str, resolution: int) -> Iterator[Item]:
    metadata, archives = metadata_files(folder), sorted(folder.glob("*.tar"))
    if metadata:
        for path in metadata:
            yield from official_items(path, family, resolution)
        return
    if not archives:
        yield from folder_items(folder)
        return
    if any(path.suffix.lower() in IMAGES for path in folder.iterdir()):
        raise ValueError(f"{folder} holds both images and .tar files; move one kind to a folder of its own, or name "
                         "the .tar files")
    for path in archives:
        yield from archive_items(path)
