"""Whether a command can write where it is told to; without the imports of `arguments`."""
import os
from pathlib import Path

from ..files.atomic import mode_of_new, part_name


def require_parent(path: Path) -> None:
    """Refuse a place that cannot be written to before any work is done for it."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"the folder {folder} does not exist; create it first: {path}")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"the folder {folder} cannot be written to; choose another: {path}")
    mode_of_new(folder / part_name(path.name))          # what may be written to can still refuse, as /proc does


def require_folder_place(path: Path, option: str = "--out") -> None:
    """Refuse a folder to write into where a file is."""
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{option} {path}: this is a file; give the name of a folder")
    if path.is_dir() and not os.access(path, os.W_OK):
        raise PermissionError(f"{option} {path}: this folder cannot be written to; choose another")


def require_other_place(out: Path, *read: Path | None, option: str = "--out") -> None:
    """Refuse to write over what is read: a file under any of its names, or a file in a folder."""
    if not out.exists():
        return
    for given in (path for path in read if path is not None and path.exists()):
        if out.samefile(given):
            raise ValueError(f"{option} is what is read, which would be replaced; choose another name: {out}")
        if given.is_dir() and any(folder.samefile(given) for folder in out.absolute().parents):
            raise ValueError(f"{option} is a file in a folder that is read and would be replaced; choose another name: "
                             f"{out}")


def require_file_place(path: Path) -> None:
    """As `require_parent`, for a file: not where a folder is."""
    require_parent(path)
    if path.is_dir():
        raise IsADirectoryError(f"--out {path}: this is a folder; give the name of a file in it")
