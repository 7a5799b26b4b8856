"""The network in a diffusers folder, and what the files around it say: config.json, model_index.json, tokenizer."""
from pathlib import Path
from typing import Any

from ..weights.errors import PIXART_FILE, CheckpointError
from ..weights.locate import Kind
from ..weights.settings import Check, checked_entries, number, optional, read_json, text, whole

TRANSFORMER_CLASSES = ("PixArtTransformer2DModel", "Transformer2DModel")
STEM = "diffusion_pytorch_model"
WEIGHTS_NAME = f"{STEM}.safetensors"
TRANSFORMER = Kind(PIXART_FILE, "transformer", (STEM,))

TRANSFORMER_CONFIG_FIELDS: dict[str, Check] = {"_class_name": text, "sample_size": optional(whole(1, 1 << 14)),
                                               "interpolation_scale": optional(number(1e-3, 1e3)),
                                               "num_attention_heads": optional(whole(1, 1 << 12))}
TRAINED_TOKENS = {120: "sd", 300: "sdxl"}       # longest caption of alpha and of Sigma -> latent space


def folder_settings(path: Path, classes: tuple[str, ...], expected: str) -> dict[str, Any]:
    """What the files of a diffusers folder say. CheckpointError says what it is, if not such a network."""
    folder = path / "transformer" if (path / "transformer").is_dir() else path
    if folder == path and (path / "unet").is_dir():
        raise CheckpointError(path, "a Stable Diffusion pipeline (it has a unet folder)", expected)
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(path, "a LoRA (adapter_config.json)", expected, "Use the LoRA loader with a base model.")
    return network_settings(folder, classes)


def settings_beside(path: Path, files: tuple[Path, ...], classes: tuple[str, ...], expected: str) -> dict[str, Any]:
    """Settings beside weights that were given as a file, an index, a shard or a folder's config.json.

    Beside a weight file without diffusers' usual name, config.json may be of another model, and is not read.
    """
    if path.suffix.lower() == ".json":
        return folder_settings(path.parent, classes, expected)
    return network_settings(path.parent, classes) if files[0].name.startswith(STEM) else {}


def network_settings(folder: Path, classes: tuple[str, ...]) -> dict[str, Any]:
    """The checked entries of config.json that matter, and `pipeline_class`, `vae_scaling_factor` and `tokens`."""
    config = folder / "config.json"
    if not config.is_file():
        return {}
    settings = checked_entries(read_json(config), TRANSFORMER_CONFIG_FIELDS, config, "config.json")
    name = settings.get("_class_name", classes[0])
    if name not in classes:
        raise CheckpointError(folder, f"a {name[:60]} by its config.json", " or ".join(classes))
    return settings | (pipeline_settings(folder.parent) if folder.name == "transformer" else {})


def pipeline_settings(folder: Path) -> dict[str, Any]:
    """What a pipeline's other parts tell about its transformer."""
    sources: dict[str, tuple[str, str, Check]] = {
        "pipeline_class": ("model_index.json", "_class_name", text),
        "vae_scaling_factor": ("vae/config.json", "scaling_factor", optional(number(1e-6, 1e3)))}
    found = {}
    for key, (file, entry, check) in sources.items():
        if (folder / file).is_file():
            found[key] = checked_entries(read_json(folder / file), {entry: check}, folder / file, file).get(entry)
    tokenizer = folder / "tokenizer" / "tokenizer_config.json"
    tokens = read_json(tokenizer).get("model_max_length") if tokenizer.is_file() else None
    return found | ({"tokens": tokens} if isinstance(tokens, int) and tokens in TRAINED_TOKENS else {})
