"""A folder for one process at a time."""
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on the folder; the system releases it when this process ends, however it ends.

    Raises BlockingIOError if another process holds it. On a file system without locks (Lustre, some network mounts)
    this only logs a warning.
    """
    with (folder / LOCK_FILE).open("a+b") as file:
        try:
            _lock(file.fileno())
        except (BlockingIOError, PermissionError) as error:         # PermissionError: Windows, some NFS
            raise BlockingIOError("another process is at work in this folder; wait for it, or choose another folder: "
                                  f"{folder}") from error
        except OSError as error:
            logger.warning("%s: this file system does not support locks (%s); let only one process work there", folder,
                           error.strerror)
        yield


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        return
    import fcntl
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
