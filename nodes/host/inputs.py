"""Lists of prompts in the host's input folder and the bundled one: found, and never anything outside of them."""
from pathlib import Path

from ...pixart.files.prompts import PROMPT_SUFFIXES
from .folders import BUNDLED, NONE_FOUND, MissingFile, hosted

BUNDLED_LISTS = BUNDLED / "prompts"     # named pixart-mini/... as bundled models are
PUT_LIST_THERE = "Put a .txt, .csv or .jsonl file into ComfyUI's input folder and press R on the page."


def prompt_files() -> list[str]:
    """Names for a combo: of the input folder and the folders in it, then what comes with the extension."""
    if not hosted():
        return [NONE_FOUND]
    names = dict.fromkeys(name for root in (input_folder(), BUNDLED_LISTS) for name in lists_in(root))
    return list(names) or [NONE_FOUND]


def lists_in(root: Path) -> list[str]:
    """Names below the folder, in order."""
    found = (path for pattern in ("*", "*/*") for path in root.glob(pattern) if path.suffix.lower() in PROMPT_SUFFIXES)
    return sorted(path.relative_to(root).as_posix() for path in found if path.is_file())


def prompt_path(name: str) -> Path:
    """In the input folder, else bundled. Raises MissingFile for what is not there, and for every way out of these
    folders, links included."""
    spelled = Path(name.replace("\\", "/"))
    safe = "\0" not in name and not spelled.is_absolute() and spelled.drive == "" and ".." not in spelled.parts
    for root in (input_folder(), BUNDLED_LISTS.resolve()):
        path = (root / spelled).resolve() if safe else root
        if path.is_relative_to(root) and path.suffix.lower() in PROMPT_SUFFIXES and is_file(path):
            return path
    raise MissingFile(f"there is no list of prompts {name[:200]!r} in the input folder",
                      f"{PUT_LIST_THERE} Looked in {input_folder()}.",
                      f"no such list is in the input folder. {PUT_LIST_THERE}")


def is_file(path: Path) -> bool:
    """False also for names that the system does not take."""
    try:
        return path.is_file()
    except OSError:
        return False


def input_folder() -> Path:
    import folder_paths
    return Path(folder_paths.get_input_directory()).resolve()
