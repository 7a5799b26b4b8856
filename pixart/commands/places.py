"""Whether a command can write where it is told to; without the imports of `arguments`."""
from pathlib import Path


def require_parent(path: Path) -> None:
    """Refuse a place that cannot be written to before any work is done for it."""
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder {path.absolute().parent} does not exist; create it first: {path}")


def require_folder_place(path: Path) -> None:
    """Refuse a folder to write into where a file is."""
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"--out {path}: this is a file; give the name of a folder")


def require_file_place(path: Path) -> None:
    """As `require_parent`, for a file: not where a folder is."""
    require_parent(path)
    if path.is_dir():
        raise IsADirectoryError(f"--out {path}: this is a folder; give the name of a file in it")
