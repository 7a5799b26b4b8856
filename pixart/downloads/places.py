"""Where ComfyUI keeps its models."""
import os
from pathlib import Path


def models_folder(chosen: Path | None) -> Path:
    """The folder `models` of that ComfyUI, or of one that is found: around this checkout, $COMFYUI_PATH, ~/comfy.

    Raises FileNotFoundError.
    """
    if chosen is not None:
        if not is_host(chosen.expanduser()):
            raise FileNotFoundError(f"no ComfyUI is there (main.py and models are expected); use --out DIR for any "
                                    f"other folder: {chosen}")
        return chosen.expanduser() / "models"
    pack = Path(os.path.abspath(__file__)).parents[2]           # not resolved: it may be linked into the host
    named = [Path(part).expanduser() for part in os.environ.get("COMFYUI_PATH", "").split(os.pathsep) if part]
    around = [pack.parent.parent] if pack.parent.name == "custom_nodes" else []
    found = next((place for place in [*around, *named, Path.home() / "comfy" / "ComfyUI"] if is_host(place)), None)
    if found is None:
        raise FileNotFoundError("no ComfyUI was found; name it with --comfyui PATH, or a folder with --out DIR")
    return found / "models"


def is_host(path: Path) -> bool:
    return (path / "main.py").is_file() and (path / "models").is_dir()
