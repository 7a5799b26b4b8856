"""Lists of prompts in the host's input folder: found, and never anything outside of it."""
from pathlib import Path

from ...pixart.prompts import PROMPT_SUFFIXES
from .folders import NONE_FOUND, MissingFile, hosted

PUT_LIST_THERE = "Put a .txt, .csv or .jsonl file into ComfyUI's input folder and press R on the page."


def prompt_files() -> list[str]:
    """Names for a combo: of the input folder and the folders in it."""
    if not hosted():
        return [NONE_FOUND]
    root = input_folder()
    found = (path for pattern in ("*", "*/*") for path in root.glob(pattern) if path.suffix.lower() in PROMPT_SUFFIXES)
    return sorted(path.relative_to(root).as_posix() for path in found if path.is_file()) or [NONE_FOUND]


def prompt_path(name: str) -> Path:
    """Raises MissingFile for what is not there, and for every way out of the folder, links included."""
    root = input_folder()
    spelled = Path(name.replace("\\", "/"))
    safe = "\0" not in name and not spelled.is_absolute() and spelled.drive == "" and ".." not in spelled.parts
    path = (root / spelled).resolve() if safe else root
    if not path.is_relative_to(root) or path.suffix.lower() not in PROMPT_SUFFIXES or not is_file(path):
        raise MissingFile(f"there is no list of prompts {name[:200]!r} in the input folder",
                          f"{PUT_LIST_THERE} Looked in {root}.",
                          f"no such list is in the input folder. {PUT_LIST_THERE}")
    return path


def is_file(path: Path) -> bool:
    """False also for names that the system does not take."""
    try:
        return path.is_file()
    except OSError:
        return False


def input_folder() -> Path:
    import folder_paths
    return Path(folder_paths.get_input_directory()).resolve()
