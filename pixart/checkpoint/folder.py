"""Which files of a path hold the weights, and what the config.json beside them says."""
import json
from dataclasses import dataclass, field
from pathlib import Path

from .errors import CheckpointError, CheckpointNotFound

TRANSFORMER_CLASSES = ("PixArtTransformer2DModel", "Transformer2DModel")
STEM = "diffusion_pytorch_model"
PREFERRED = (f"{STEM}.safetensors", f"{STEM}.fp16.safetensors", f"{STEM}.bf16.safetensors", f"{STEM}.bin",
             f"{STEM}.fp16.bin")
INDEX = (f"{STEM}.safetensors.index.json", f"{STEM}.fp16.safetensors.index.json", f"{STEM}.bin.index.json")
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
WEIGHTS = f"weight files ({', '.join(SUFFIXES)})"


@dataclass(frozen=True)
class Location:
    """Files that together hold one model, and the settings found beside them.

    `settings` is the transformer's config.json, with `pipeline_class`, `vae_scaling_factor` and `tokens` added where
    the folder belongs to a whole diffusers pipeline.
    """

    path: Path
    files: tuple[Path, ...]
    settings: dict = field(default_factory=dict)


def locate(path: Path, classes: tuple[str, ...] = TRANSFORMER_CLASSES) -> Location:
    """Find the weights at a path: a file, an index of shards, or a folder. `classes` may stand in its config.json."""
    if not path.exists():
        raise CheckpointNotFound(path, "no such file or folder", todo="Check the path.")
    if path.is_dir():
        return _locate_folder(path, classes)
    if path.name.endswith(".index.json"):
        return Location(path, _shards(path), _settings(path.parent, classes))
    belongs = path.name.startswith(STEM)      # config.json beside any other name need not speak of this file
    return Location(path, (path,), _settings(path.parent, classes) if belongs else {})


def _locate_folder(path: Path, classes: tuple[str, ...]) -> Location:
    folder = path / "transformer" if (path / "transformer").is_dir() else path
    if folder == path and (path / "unet").is_dir():
        raise CheckpointError(path, "a Stable Diffusion pipeline (it has a unet folder)")
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(path, "a LoRA (adapter_config.json)", todo="Use the LoRA loader with a base model.")
    settings = _settings(folder, classes)
    for name in INDEX[:2]:
        if (folder / name).is_file():
            return Location(path, _shards(folder / name), settings)
    for name in PREFERRED:
        if (folder / name).is_file():
            return Location(path, (folder / name,), settings)
    if (folder / INDEX[2]).is_file():
        return Location(path, _shards(folder / INDEX[2]), settings)
    found = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)
    if len(found) == 1:
        return Location(path, (found[0],), settings)
    if not found:
        raise CheckpointNotFound(path, f"no weights in this folder (looked in {folder})", WEIGHTS,
                                 "Choose the folder that holds the weights, or the file itself.")
    raise CheckpointError(path, f"{len(found)} weight files ({found[0].name}, {found[1].name}, ...)",
                          f"one, or {PREFERRED[0]}", "Choose the file itself.")


def _shards(index: Path) -> tuple[Path, ...]:
    names = sorted(set(_json(index).get("weight_map", {}).values()))
    if any(Path(name).name != name for name in names):
        raise CheckpointError(index, "an index that points outside its folder", "plain file names")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing or not names:
        first = f", the first is {missing[0]}" if missing else ""
        raise CheckpointNotFound(index, f"{len(missing)} of {len(names)} shards are missing{first}",
                                 "every shard in the same folder", "Download the missing ones.")
    return tuple(index.parent / name for name in names)


def _settings(folder: Path, classes: tuple[str, ...]) -> dict:
    """config.json of a network, with what the pipeline around it tells; {} where there is none."""
    if not (folder / "config.json").is_file():
        return {}
    settings = _json(folder / "config.json")
    name = settings.get("_class_name", classes[0])
    if name not in classes:
        raise CheckpointError(folder, f"a {name} by its config.json", " or ".join(classes))
    parts = {"pipeline_class": ("model_index.json", "_class_name"),
             "vae_scaling_factor": ("vae/config.json", "scaling_factor"),
             "tokens": ("tokenizer/tokenizer_config.json", "model_max_length")}
    for key, (file, entry) in parts.items():
        if folder.name == "transformer" and (folder.parent / file).is_file():
            settings[key] = _json(folder.parent / file).get(entry)
    return settings


def _json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(path, f"unreadable JSON ({error})", "JSON", "Download it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(path, f"a JSON {type(content).__name__}", "a JSON object")
    return content
