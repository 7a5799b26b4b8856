"""Files that are complete or absent: written under a temporary name in the same folder, then renamed."""
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
    """Yields a path to write to, in the same (existing) folder; renamed to `path` when the block ends without an error.

    After an error or an interruption the old file at `path` is untouched and the partial file is removed. If the
    process is killed, the old file is untouched too, and at most a hidden `.part` file remains beside it. Permissions
    are those of the old file, or the system's for a new one: some writers (safetensors) allow the owner only.

    Raises FileNotFoundError if the folder does not exist, and PermissionError if another program has the old file open
    (Windows).
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
    """The temporary name of a file; a name that would become too long for the file system is replaced by its digest."""
    added = f"{os.getpid()}-{threading.get_ident()}.part"
    whole = f".{name}.{added}"
    return whole if len(os.fsencode(whole)) <= MOST_NAME_BYTES else \
        f".{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}.{added}"


def usual_mode(path: Path, beside: Path) -> int:
    """Mode of the file at `path`, or that of a new file in its folder, found by creating `beside` for a moment."""
    return path.stat().st_mode if path.is_file() else mode_of_new(beside)


def mode_of_new(path: Path) -> int:
    """Mode of a file that is created for a moment. OSError, with what to do, where the folder takes none."""
    try:
        path.touch()
    except OSError as error:
        reason = f"this folder takes no new file ({error.strerror or error}); choose another"
        raise OSError(error.errno, reason, str(path.parent)) from error
    mode = path.stat().st_mode
    path.unlink()
    return mode


def rename(beside: Path, path: Path) -> None:
    try:
        os.replace(beside, path)
    except PermissionError as error:
        if os.name == "nt" and path.exists():
            raise PermissionError(error.errno, "the old file is in use by a program that has it open, such as a model "
                                  "loaded from it; close that, or choose another name", str(path)) from error
        raise
