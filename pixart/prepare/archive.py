"""WebDataset shards: tar files in which the files of one example follow each other and share their name.

Read with the standard library's tarfile, which gives the place of every file inside the archive, so that an image is
read from there when its turn comes. The webdataset package reads a shard as a stream from its start, which would read
everything again at each resumption.
"""
import json
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from .folder import IMAGES, decode_caption
from .items import Item, Place
from .manifest import CAPTION


def archive_items(path: Path) -> Iterator[Item]:
    """Items of an uncompressed tar file; keys are `archive/name`. The caption is in `name.txt` or `name.json`.

    ValueError for what is not such a file. An archive that was cut off gives what it has and an item with a fault.
    """
    faults: list[Item] = []
    for name, members in groupby(_members(path, faults), key=lambda member: _split(member[0])[0]):
        parts = {_split(member)[1]: place for member, place in members}
        images = [place for ending, place in parts.items() if f".{ending.rpartition('.')[2]}" in IMAGES]
        if images:
            yield _item(f"{path.name}/{name}", images[0], parts)
        elif parts.keys() & {"txt", "json"}:
            yield Item(f"{path.name}/{name}", fault="it has a caption but no image")
    yield from faults


def _split(name: str) -> tuple[str, str]:
    """Name of the example, and ending: everything after the first dot of the last part, in lower case."""
    folder, _, last = name.rpartition("/")
    stem, _, ending = last.partition(".")
    return (f"{folder}/{stem}" if folder else stem), ending.lower()


def _members(path: Path, faults: list[Item]) -> Iterator[tuple[str, Place]]:
    try:
        with tarfile.open(path, "r:") as archive:
            try:
                for member in archive:
                    if member.isreg():
                        yield member.name.removeprefix("./"), Place(path, member.offset_data, member.size)
            except tarfile.TarError as error:
                faults.append(Item(path.name, fault=f"the archive is damaged or cut off: {error}"))
    except tarfile.TarError as error:
        raise ValueError(f"{path} is not an uncompressed tar file ({error}); unpack a compressed one with gzip, zstd "
                         "or xz first, so that its images can be found again") from error


def _item(key: str, image: Place, parts: dict[str, Place]) -> Item:
    try:
        if "txt" in parts:
            return Item(key, decode_caption(parts["txt"].read()), image)
        if "json" in parts:
            found = json.loads(parts["json"].read())
            caption = next((found[name] for name in CAPTION if isinstance(found.get(name), str)), None)
            if caption is not None:
                return Item(key, caption.strip(), image)
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        return Item(key, fault=f"its caption cannot be read: {error}")
    return Item(key, fault=f"it has no caption: neither a .txt file nor one of {', '.join(CAPTION)} in a .json file")
