"""Reading LoRA files: every layout and adapter, at the scale it was trained with."""
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ...weights.errors import CheckpointError
from ...weights.locate import Kind, find_files
from ...weights.reader import open_weights
from ...weights.values import check_finite, check_floating
from ..layouts import diffusers_names
from .adapters import COMPLETE, ModuleTensors, build_changes
from .alpha import LARGEST_ALPHA, LORA_FILE, ScaleSettings, find_settings
from .changes import Change
from .keys import ALPHA, DOTTED, DOWN, WeightSlice, layout_of, split_key, stranger, weight_slice
from .lora import Lora

LORA_KIND = Kind(LORA_FILE, "", ("adapter_model", "pytorch_lora_weights"))


def read_lora(path: str | os.PathLike, alpha: float | None = None) -> Lora:
    """Read the LoRA of a PixArt transformer in any layout and of any method ComfyUI knows, at its true scale.

    path: a .safetensors or .bin file, or a folder as peft saves it. The scale is alpha / rank; alpha is looked for in
    the tensors, in the adapter_config.json beside, and in the file's header. Files of the official trainers
    that say nothing were trained with 8; others that say nothing, with the rank. alpha > 0: use this instead of all
    that. Text encoder keys and unknown ones are listed in `ignored`. Raises CheckpointError, a ValueError, for files of
    other models and other methods, incomplete pairs, numbers that are not finite and damaged files.
    """
    if alpha is not None and not 0 < alpha < float("inf"):
        raise ValueError(f"alpha is {alpha}; it must be above 0, or left out to take what the file says")
    path = Path(path).expanduser()
    file = find_files(path, LORA_KIND)[0]
    weights = open_weights(file, LORA_KIND)
    groups, ignored = group_keys(weights.tensors)
    check_kind(weights.tensors, groups, file)
    first = next(iter(groups))
    settings = find_settings(file, first.startswith(("base_model.", "unet.base_model.")), weights.metadata,
                             common_rank(groups, weights.tensors))
    if alpha is not None:
        settings = ScaleSettings(f"alpha {alpha:g} as chosen", alpha)
    reader = _Reader(weights.tensors, settings, alpha is not None, file)
    parts = tuple(part for module, keys in groups.items() for part in reader.changes(module, keys))
    check_once(parts, file)
    own = alpha is None and all(ALPHA in keys for keys in groups.values() if DOWN in keys)
    used = {key for part in parts for key in part.keys}
    unused = [key for keys in groups.values() for key in keys.values() if key not in used]
    return Lora(parts, layout_of(first), "alpha from the file" if own else settings.source, (*ignored, *unused), file)


def lora_header(path: str | os.PathLike) -> tuple[Path, Mapping[str, str]]:
    """The path as given, and the header's metadata of the file there. Raises CheckpointError if it is no LoRA."""
    path = Path(path).expanduser()
    weights = open_weights(find_files(path, LORA_KIND)[0], LORA_KIND)
    check_kind(weights.tensors, group_keys(weights.tensors)[0], weights.path)
    return path, weights.metadata


def group_keys(tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Module name in the file -> {kind of tensor: key}, for modules of PixArt; and all other keys."""
    groups: dict[str, dict[str, str]] = {}
    ignored = []
    for key in tensors:
        split = split_key(key)
        if split is None or weight_slice(split[0]) is None:
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
        raise CheckpointError(file, f"no LoRA: {len(tensors)} tensors such as {min(tensors)[:60]}", LORA_FILE,
                              "Whole models are for Load PixArt.")
    raise CheckpointError(file, f"a LoRA of another model, with keys such as {min(tensors)[:60]}", LORA_FILE)


@dataclass(frozen=True)
class _Reader:
    """One file; `forced`: settings override the alpha in its tensors."""

    tensors: Mapping[str, Tensor]
    settings: ScaleSettings
    forced: bool
    file: Path

    def changes(self, module: str, keys: Mapping[str, str]) -> list[Change]:
        """What the tensors of one module change: its weight, its bias or both."""
        place = weight_slice(module)
        assert place is not None            # group_keys keeps no others
        for kind, key in keys.items():
            if kind != ALPHA:
                check_floating(key, self.tensors[key], self.file, LORA_FILE)
            check_finite(key, self.tensors[key], self.file, LORA_FILE)
        self._refuse_halves(module, keys)
        found = ModuleTensors(place, {kind: self.tensors[key] for kind, key in keys.items()}, keys, self.alpha(keys),
                              lambda rank: self.settings.scale(names_of(module, place), rank))
        try:
            return build_changes(found)
        except (ValueError, IndexError, RuntimeError) as error:
            example = next(iter(keys.values()))
            raise CheckpointError(self.file, f"{example} and its partners do not fit ({str(error)[:120]})", LORA_FILE,
                                  "It is damaged or of another kind.") from error

    def alpha(self, keys: Mapping[str, str]) -> float | None:
        """Alpha from the tensors; None where they have none or it is overridden."""
        if ALPHA not in keys or self.forced:
            return None
        tensor = self.tensors[keys[ALPHA]]
        if tensor.numel() != 1 or tensor.is_complex():
            kind = "complex " if tensor.is_complex() else ""
            raise CheckpointError(self.file, f"{keys[ALPHA]} holds {tensor.numel()} {kind}numbers", "one real number")
        alpha = float(tensor.item())
        if abs(alpha) > LARGEST_ALPHA:
            raise CheckpointError(self.file, f"{keys[ALPHA]} is {alpha:g}", f"a number up to {LARGEST_ALPHA:g}",
                                  "The file is damaged; get it again.")
        return alpha

    def _refuse_halves(self, module: str, keys: Mapping[str, str]) -> None:
        for together in COMPLETE:
            there = [kind for kind in together if kind in keys]
            if there and len(there) < len(together):
                raise CheckpointError(self.file, f"{keys[there[0]]} has no partner: a LoRA pair of {module} is "
                                      "incomplete", LORA_FILE, "The file is damaged or cut; get it again.")


def check_once(parts: tuple[Change, ...], file: Path) -> None:
    """Refuse two changes of the same rows, such as one layer under two names."""
    seen: dict[tuple[str, int, int], Change] = {}
    for part in parts:
        first = seen.setdefault((part.target, part.part, part.parts), part)
        if first is not part:
            raise CheckpointError(file, f"{first.keys[0]} and {part.keys[0]} change the same layer", LORA_FILE)


def names_of(module: str, place: WeightSlice) -> tuple[str, ...]:
    """Names that settings may use for a module: the file's without prefix, and diffusers' if it has the same module."""
    own, names = DOTTED.sub("", module, count=1), diffusers_names(f"{place.module}.weight") or ()
    return (own, names[place.part].removesuffix(".weight")) if len(names) == place.parts else (own,)


def common_rank(groups: Mapping[str, Mapping[str, str]], tensors: Mapping[str, Tensor]) -> int:
    """The most common rank in the file."""
    ranks = Counter(tensors[keys[DOWN]].shape[0] for keys in groups.values()
                    if DOWN in keys and tensors[keys[DOWN]].ndim)
    return ranks.most_common(1)[0][0] if ranks else 0
