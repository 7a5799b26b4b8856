"""Write a PixArt transformer as diffusers stores one: a folder with config.json and the weights under its names."""
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import PixArtConfig
from ..files.atomic import replacing
from ..model.flexdit_config import FlexDiTConfig
from ..weights.safetensors_file import write_tensors
from .folder import TRANSFORMER_CLASSES, WEIGHTS_NAME
from .header import to_header
from .layouts import to_diffusers
from .save import plain_tensor


def save_diffusers(folder: str | os.PathLike, weights: nn.Module | Mapping[str, Tensor],
                   config: PixArtConfig | None = None, dtype: torch.dtype | None = None,
                   metadata: Mapping[str, str] | None = None) -> Path:
    """For `PixArtTransformer2DModel.from_pretrained(folder)`, and for `load`; returns the folder.

    config: that of the model by default. dtype: convert the tensors. metadata: further header entries. Each file is
    replaced atomically. Raises ValueError for what diffusers' class cannot hold: key/value compression, qk norm and
    FlexDiT.
    """
    folder = Path(folder)
    config = config or getattr(weights, "config", None)
    if config is None:
        raise ValueError("a state dict does not say its configuration; pass config")
    refuse_for_diffusers(config, folder)
    state_dict = weights.state_dict() if isinstance(weights, nn.Module) else weights
    tensors = {name: plain_tensor(name, tensor, dtype) for name, tensor in to_diffusers(state_dict).items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS_NAME, tensors, {"format": "pt", **(metadata or {}), **to_header(config)})
    with replacing(folder / "config.json") as beside:
        beside.write_text(json.dumps(settings(config), indent=2) + "\n", encoding="utf-8")
    return folder


def refuse_for_diffusers(config: PixArtConfig, folder: Path) -> None:
    """ValueError for a model that diffusers' class cannot hold."""
    if config.kv_compression or config.qk_norm or isinstance(config, FlexDiTConfig):
        what = "FlexDiT" if isinstance(config, FlexDiTConfig) else "key/value compression or qk norm"
        raise ValueError(f"diffusers has no place for {what}; give a name that ends in .safetensors to write the "
                         f"reference layout: {folder}")


def settings(config: PixArtConfig) -> dict[str, object]:
    """The entries of diffusers' config.json for such a model."""
    return {"_class_name": TRANSFORMER_CLASSES[0], "num_attention_heads": config.heads,
            "attention_head_dim": config.hidden // config.heads, "in_channels": config.channels,
            "out_channels": config.out_channels, "num_layers": config.depth, "cross_attention_dim": config.hidden,
            "attention_bias": True, "sample_size": config.base_size * config.patch, "patch_size": config.patch,
            "activation_fn": "gelu-approximate", "num_embeds_ada_norm": 1000, "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False, "norm_eps": 1e-6, "interpolation_scale": config.position_scale,
            "use_additional_conditions": config.micro_conditioning, "caption_channels": config.caption_width}
