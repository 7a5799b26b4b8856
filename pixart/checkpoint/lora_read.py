"""Reading LoRA files: every layout, at the scale it was trained with."""
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..weights.locate import Kind
from ..weights.reader import open_weights
from .errors import CheckpointError, CheckpointNotFound
from .layouts import diffusers_names
from .lora import Lora, LoraPart
from .lora_alpha import LORA_FILE, Settings, find_settings
from .lora_keys import ALPHA, DOWN, MAGNITUDE, UP, layout_of, place_of, split_key, stranger

FILES = ("adapter_model.safetensors", "adapter_model.bin", "pytorch_lora_weights.safetensors",
         "pytorch_lora_weights.bin")


def read_lora(path: str | os.PathLike, alpha: float | None = None) -> Lora:
    """Read the LoRA or DoRA of a PixArt transformer, in any layout, at the scale it was trained with.

    path: a .safetensors or .bin file, or a folder as peft saves it. The scale is alpha / rank; alpha is looked for in
    the tensors, in the adapter_config.json beside, and in the file's header. Files of the official trainers
    that say nothing were trained with 8; others that say nothing, with the rank. alpha > 0: use this instead of all
    that. Text encoder keys and unknown ones are listed in `ignored`. Raises CheckpointError, a ValueError, for files of
    other models, halves of pairs and damaged files.
    """
    if alpha is not None and not alpha > 0:
        raise ValueError(f"alpha is {alpha}; it must be above 0, or left out to take what the file says")
    file = find_file(Path(path).expanduser())
    weights = open_weights(file, Kind(LORA_FILE))
    groups, ignored = group_keys(weights.tensors)
    check_kind(weights.tensors, groups, file)
    first = next(iter(groups))
    settings = find_settings(file, first.startswith(("base_model.", "unet.base_model.")), weights.metadata,
                             common_rank(groups, weights.tensors))
    if alpha is not None:
        settings = Settings(f"alpha {alpha:g} as chosen", alpha)
    parts = tuple(read_part(module, keys, weights.tensors, settings, alpha is not None, file)
                  for module, keys in groups.items())
    check_once(parts, file)
    own = alpha is None and all(ALPHA in keys for keys in groups.values())
    return Lora(parts, layout_of(first), "alpha from the file" if own else settings.source, tuple(ignored), file)


def find_file(path: Path) -> Path:
    """The weights in a folder; a file is itself."""
    if not path.exists():
        raise CheckpointNotFound(path, "no such file or folder", LORA_FILE, "Check the path.")
    if not path.is_dir():
        return path
    found = next((path / name for name in FILES if (path / name).is_file()), None)
    if found is None:
        raise CheckpointNotFound(path, "a folder without LoRA weights", f"one of {', '.join(FILES)} in it")
    return found


def group_keys(tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Module name in the file -> {DOWN, UP, ALPHA, MAGNITUDE: key}, for modules of PixArt; and all other keys."""
    groups: dict[str, dict[str, str]] = {}
    ignored = []
    for key in tensors:
        split = split_key(key)
        if split is None or place_of(split[0]) is None:
            ignored.append(key)
        else:
            groups.setdefault(split[0], {})[split[1]] = key
    return groups, ignored


def check_kind(tensors: Mapping[str, Tensor], groups: Mapping[str, object], file: Path) -> None:
    """Refuse LoRAs of other models, other methods, and files that are no LoRA."""
    other = stranger(tensors)
    if other is not None:
        raise CheckpointError(file, other, LORA_FILE)
    if groups:
        return
    if not any(split_key(key) for key in tensors):
        raise CheckpointError(file, f"no LoRA: {len(tensors)} tensors such as {min(tensors)}", LORA_FILE,
                              "Whole models are for Load PixArt.")
    raise CheckpointError(file, f"a LoRA of another model, with keys such as {min(tensors)}", LORA_FILE)


def read_part(module: str, keys: Mapping[str, str], tensors: Mapping[str, Tensor], settings: Settings, forced: bool,
              file: Path) -> LoraPart:
    """One module's change. `forced`: settings win over the alpha in the file."""
    if DOWN not in keys or UP not in keys:
        there = next(iter(keys.values()))
        raise CheckpointError(file, f"{there} has no partner: a LoRA pair of {module} is incomplete", LORA_FILE,
                              "The file is damaged or cut; get it again.")
    place, down, up = place_of(module), tensors[keys[DOWN]], tensors[keys[UP]].flatten(1)
    if down.ndim not in (2, 4) or up.shape[1] != down.shape[0]:
        found = f"{keys[DOWN]} of shape {tuple(down.shape)} does not fit its partner's, {tuple(up.shape)}"
        raise CheckpointError(file, found, "shapes (rank, in) and (out, rank)", "It is damaged or of another kind.")
    scale = settings.scale(diffusers_name(place.module, place.part), down.shape[0])
    if ALPHA in keys and not forced:
        scale = tensors[keys[ALPHA]].item() / down.shape[0]
    magnitude = tensors[keys[MAGNITUDE]].flatten() if MAGNITUDE in keys else None
    if magnitude is not None and len(magnitude) != len(up):
        raise CheckpointError(file, f"{keys[MAGNITUDE]} has {len(magnitude)} numbers for {len(up)} rows",
                              "DoRA magnitudes of output rows")
    return LoraPart(place.module, place.part, place.parts, down, up, scale, magnitude, tuple(keys.values()))


def check_once(parts: tuple[LoraPart, ...], file: Path) -> None:
    """Refuse two changes of the same rows, such as one layer under two names."""
    seen: dict[tuple[str, tuple[int, int]], LoraPart] = {}
    for part in parts:
        first = seen.setdefault((part.module, part.rows), part)
        if first is not part:
            raise CheckpointError(file, f"{first.keys[0]} and {part.keys[0]} change the same layer", LORA_FILE)


def diffusers_name(module: str, part: int) -> str:
    """Settings name modules as diffusers does."""
    return diffusers_names(f"{module}.weight")[part].removesuffix(".weight")


def common_rank(groups: Mapping[str, Mapping[str, str]], tensors: Mapping[str, Tensor]) -> int:
    """The most common rank in the file."""
    ranks = Counter(tensors[keys[DOWN]].shape[0] for keys in groups.values() if DOWN in keys)
    return ranks.most_common(1)[0][0] if ranks else 0
