"""Files that are whole or not there: written beside their place and renamed."""
import errno
import hashlib
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MOST_NAME_BYTES = 255          # bytes, on the file systems in use


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a path to write to, in the same (existing) folder; renamed to `path` when the block ends well.

    After an error or an interruption what lay at `path` is untouched and the partial file is gone. A kill leaves what
    lay there untouched too, and at most a hidden `.part` file beside it. The file may be read by whom the system lets
    read new files, or what lay there before: some writers (safetensors) keep theirs to the user alone.

    Raises FileNotFoundError for a folder that is not there, and OSError, saying so, where the old file cannot be
    replaced because a program has it open (Windows).
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "the folder does not exist; create it first", str(path.parent))
    beside = path.with_name(part_name(path.name))
    try:
        mode = usual_mode(path, beside)
        yield beside
        if beside.stat().st_mode != mode:
            beside.chmod(stat.S_IMODE(mode))
        rename(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def part_name(name: str) -> str:
    """Of a file while it is written; a name that leaves no room for what is added stands in it as a digest."""
    added = f"{os.getpid()}-{threading.get_ident()}.part"
    whole = f".{name}.{added}"
    return whole if len(os.fsencode(whole)) <= MOST_NAME_BYTES else \
        f".{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}.{added}"


def usual_mode(path: Path, beside: Path) -> int:
    """Of the file at `path`, or that which a new file in its folder gets; found out by making `beside` for a moment."""
    if path.is_file():
        return path.stat().st_mode
    beside.touch()
    mode = beside.stat().st_mode
    beside.unlink()
    return mode


def rename(beside: Path, path: Path) -> None:
    try:
        os.replace(beside, path)
    except PermissionError as error:
        if os.name == "nt" and path.exists():
            raise PermissionError(error.errno, "the old file is in use by a program that has it open, such as a model "
                                  "loaded from it; close that, or choose another name", str(path)) from error
        raise
