"""A folder of images, each with its caption in a text file of the same name beside it."""
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from .items import Item, Place

logger = logging.getLogger(__name__)

IMAGES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".jp2", ".ppm"}

SIDECARS = (".txt", ".caption")         # of most trainers, and the default of kohya's scripts


def files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder in a fixed order, hidden ones left out; links are followed, a circle once."""
    seen = set()
    for place, inner, names in os.walk(folder, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen and status.st_ino:
            inner.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))


def folder_items(folder: Path) -> Iterator[Item]:
    """Items of a folder and the folders in it; keys are paths below it. What is neither image nor text is counted."""
    others = 0
    for path in files_below(folder):
        ending = path.suffix.lower()
        if ending in IMAGES:
            yield _item(path, path.relative_to(folder).as_posix())
        elif ending not in SIDECARS:
            others += 1
    if others:
        logger.warning("%d files in %s are neither images nor captions and were left out", others, folder)


def _item(path: Path, key: str) -> Item:
    sidecar = sidecar_of(path)
    if sidecar is None:
        return Item(key, fault=f"it has no caption: {path.stem}.txt is not there")
    try:
        caption = decode_caption(sidecar.read_bytes())
    except (OSError, ValueError) as error:
        return Item(key, fault=f"its caption {sidecar.name} cannot be read: {error}")
    return Item(key, caption, Place(path))


def sidecar_of(image: Path) -> Path | None:
    """The caption file of image.png: image.txt, image.caption, image.png.txt or image.png.caption.

    The first of these that is there, in letters of either case; None where there is none.
    """
    names = [stem + spelled for stem in (image.stem, image.name) for ending in SIDECARS
             for spelled in (ending, ending.upper())]
    return next((file for file in map(image.with_name, names) if file.is_file()), None)


def decode_caption(data: bytes) -> str:
    """The text of a caption file, UTF-8 with or without byte-order mark. ValueError for another encoding."""
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8 text") from error
