"""The configuration that this package's files carry: as JSON in the safetensors header, or as a tensor of that text.

A host that saves a model writes its tensors without this header, so there the text is stored as one of the tensors.
"""
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import LATENT_SCALE, KVCompression, PixArtConfig
from ..weights.errors import CheckpointError
from ..weights.settings import Check, checked_entries, flag, list_of, number, one_of, optional, parse_json, table, whole
from . import flexdit

CONFIG_KEY = "pixart_config"    # of the header entry, and of the tensor
LONGEST_CONFIG = 1 << 16        # characters of the text
CONFIG_FIELDS: dict[str, Check] = {
    "depth": whole(1, 1000), "hidden": whole(1, 1 << 16), "heads": whole(1, 1 << 12), "patch": whole(1, 64),
    "channels": whole(1, 1024), "learned_variance": flag, "caption_width": whole(1, 1 << 16),
    "caption_tokens": whole(1, 1 << 14), "base_size": whole(1, 1 << 12), "position_scale": number(1e-3, 1e3),
    "micro_conditioning": flag, "latent_space": one_of(*LATENT_SCALE), "qk_norm": flag,
    "kv_compression": optional(table),
}
COMPRESSION: dict[str, Check] = {"mode": one_of("conv", "ave", "uniform", "uniform_every"), "factor": whole(2, 64),
                                 "layers": list_of(whole(0, 1000), 1000)}


def to_header(config: PixArtConfig) -> dict[str, str]:
    """The metadata entry that `config_from_header` reads."""
    return {CONFIG_KEY: json.dumps(flexdit.config_entries(config))}


def config_from_header(metadata: Mapping[str, str], path: Path) -> PixArtConfig | None:
    """The configuration in a safetensors header, None where there is none."""
    return parse_config(metadata[CONFIG_KEY], path, f"{CONFIG_KEY} of its header") if CONFIG_KEY in metadata else None


def to_tensors(config: PixArtConfig) -> dict[str, Tensor]:
    """Tensors, in names without prefix, that give `from_tensor` the configuration and other loaders the size.

    Other programs infer the training size from the stored position table (1, base_size^2, hidden), as official files
    have it; they compute its values anew.
    """
    from ..model.positions import position_table
    from .layouts import POSITION_TABLE
    positions = position_table(config.base_size, config.base_size, config.hidden, config.base_size,
                               config.position_scale)
    written = torch.frombuffer(bytearray(to_header(config)[CONFIG_KEY].encode()), dtype=torch.uint8)
    return {CONFIG_KEY: written, POSITION_TABLE: positions[None].to(torch.float16)}


def from_tensor(tensor: Tensor, path: Path) -> PixArtConfig:
    """The configuration in a tensor that `to_tensors` made."""
    if tensor.dtype != torch.uint8 or tensor.ndim != 1 or len(tensor) > LONGEST_CONFIG:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise CheckpointError(path, f"{CONFIG_KEY} among its tensors is {kind} of shape {tuple(tensor.shape)}",
                              "the bytes of a text")
    return parse_config(bytes(tensor.tolist()), path, f"{CONFIG_KEY} among its tensors")


def parse_config(written: str | bytes, path: Path, where: str) -> PixArtConfig:
    """A PixArtConfig or FlexDiTConfig from JSON. CheckpointError names the field; unknown ones are refused."""
    entries = parse_json(written, path, where)
    segments = entries.pop(flexdit.FLEXDIT_KEY, None)
    strange = sorted(entries.keys() - {field.name for field in fields(PixArtConfig)})
    if strange:
        raise CheckpointError(path, f"{strange[0][:40]} in {where} is not known", "the fields of PixArtConfig",
                              "It may come from a newer version; update, or pass a PixArtConfig as variant.")
    known: dict[str, Any] = checked_entries(entries, CONFIG_FIELDS, path, where)
    try:
        if known.get("kv_compression") is not None:
            known["kv_compression"] = parse_compression(known["kv_compression"], path, where)
        return PixArtConfig(**known) if segments is None else flexdit.flexdit_config(segments, known, path, where)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(path, f"{where} contradicts itself: {error}", "a configuration of a PixArt") from error


def parse_compression(entries: Mapping[str, object], path: Path, where: str) -> KVCompression:
    """Key/value compression from its JSON."""
    known = checked_entries(entries, COMPRESSION, path, f"kv_compression of {where}")
    lacking = COMPRESSION.keys() - known.keys()
    if lacking:
        raise CheckpointError(path, f"kv_compression of {where} lacks {min(lacking)}", "mode, factor and layers")
    return KVCompression(known["mode"], known["factor"], tuple(known["layers"]))
