"""Writing LoRAs so that every reader applies them at the same strength.

Readers differ in where they look for alpha, and one that finds none takes it for the rank. So the scale is multiplied
into `up`: alpha then is the rank, which is written down as well, and no reader can go wrong.
"""
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...files.atomic import replacing
from ...weights.safetensors_file import write_tensors
from ..layouts import diffusers_names
from .alpha import ADAPTER_METADATA, PEFT_SETTINGS
from .changes import Change
from .lora import Lora, LoraPart

PEFT_WEIGHTS = "adapter_model.safetensors"
WRITTEN_LAYOUTS = ("diffusers", "peft")


def write_lora(path: str | os.PathLike, lora: Lora | Sequence[Change], layout: str = "diffusers",
               dtype: torch.dtype | None = None, metadata: Mapping[str, str] | None = None) -> Path:
    """Save a LoRA under the module names of diffusers, query, key and value apart.

    layout "diffusers": one .safetensors file with the prefix `transformer.`, which ComfyUI's own LoRA loader reads too.
    "peft": a folder with adapter_model.safetensors and adapter_config.json. A change of a fused weight becomes changes
    of its parts that share `lora_A`, which is exact. dtype: of the tensors, as they are by default. metadata: further
    header entries. Raises ValueError for a module that diffusers does not have (key/value compression).
    """
    path = Path(path)
    parts: tuple[Change, ...] = lora.parts if isinstance(lora, Lora) else tuple(lora)
    if layout not in WRITTEN_LAYOUTS:
        raise ValueError(f"unknown LoRA layout {layout!r}; use {' or '.join(WRITTEN_LAYOUTS)}")
    if not parts:
        raise ValueError("there is nothing to save: the LoRA changes no weight")
    named = [(name, part) for whole in parts for name, part in diffusers_parts(low_rank_part(whole))]
    prefix = "transformer" if layout == "diffusers" else "base_model.model"
    tensors = {f"{prefix}.{name}.{kind}": tensor for name, part in named
               for kind, tensor in file_tensors(part, dtype).items()}
    settings = peft_settings(named)
    header = {"format": "pt", **(metadata or {})}
    if layout == "diffusers":
        header[ADAPTER_METADATA] = json.dumps({f"transformer.{key}": value for key, value in settings.items()})
        _save(path, tensors, header)
        return path
    _save(path / PEFT_WEIGHTS, tensors, header)
    with replacing(path / PEFT_SETTINGS) as beside:
        beside.write_text(json.dumps({"peft_type": "LORA", "task_type": None, "base_model_name_or_path": None,
                                      "inference_mode": True, **settings}, indent=2), encoding="utf-8")
    return path


def low_rank_part(change: Change) -> LoraPart:
    """The change itself if it is low-rank; ValueError for others, which have no common layout."""
    by_columns = isinstance(change, LoraPart) and change.magnitude is not None and change.magnitude.ndim > 1
    if not isinstance(change, LoraPart) or change.mid is not None or by_columns:
        raise ValueError(f"the change of {change.module} is by {change.method or 'another method'}; only low-rank "
                         "changes can be written")
    return change


def diffusers_parts(part: LoraPart) -> list[tuple[str, LoraPart]]:
    """Diffusers modules and their changes, one for each slice of a fused weight."""
    found = diffusers_names(f"{part.module}.weight")
    if found is None:
        raise ValueError(f"{part.module} has no place in the diffusers layout; leave it out of the LoRA's targets")
    names = [name.removesuffix(".weight") for name in found]
    return [(names[each.part], each) for each in part.split(len(names))]


def file_tensors(part: LoraPart, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Tensors of one module under peft's names, its scale in `lora_B`."""
    up = (part.scale * part.up.float()).view(*part.up.shape, *[1] * (part.down.ndim - 2))
    tensors = {"lora_A.weight": (part.down, part.down.dtype), "lora_B.weight": (up, part.up.dtype)}
    if part.magnitude is not None:
        magnitude = part.magnitude if part.down.ndim == 2 else part.magnitude.view(1, -1, 1, 1)
        tensors["lora_magnitude_vector"] = (magnitude, part.magnitude.dtype)
    return {name: tensor.detach().to("cpu", dtype or own, copy=True).contiguous()
            for name, (tensor, own) in tensors.items()}


def peft_settings(named: Sequence[tuple[str, LoraPart]]) -> dict[str, object]:
    """The entries of peft's adapter_config.json; alpha equals the rank everywhere."""
    rank = Counter(part.rank for _, part in named).most_common(1)[0][0]
    other = {name: part.rank for name, part in named if part.rank != rank}
    return {"r": rank, "lora_alpha": rank, "rank_pattern": other, "alpha_pattern": other,
            "target_modules": [name for name, _ in named], "use_dora": any(p.magnitude is not None for _, p in named),
            "use_rslora": False, "bias": "none", "lora_dropout": 0.0}


def _save(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, header)
