"""Files that are whole or not there: written beside their place and renamed."""
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a path to write to, in the same (existing) folder; renamed to `path` when the block ends well.

    After an error or an interruption what lay at `path` is untouched and the partial file is gone. A kill leaves what
    lay there untouched too, and at most a hidden `.part` file beside it.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
