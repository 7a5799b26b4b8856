"""Other implementations of PixArt with given weights: diffusers, and the host's own. Both import what they need."""
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pixart.checkpoint import to_diffusers
from pixart.config import PixArtConfig

Run = Callable[[], torch.Tensor]


def diffusers_network(config: PixArtConfig, state: dict, dtype: torch.dtype, device: str) -> Any:
    from diffusers import PixArtTransformer2DModel
    model: Any = PixArtTransformer2DModel(
        num_attention_heads=config.heads, attention_head_dim=config.hidden // config.heads, out_channels=8,
        num_layers=config.depth, cross_attention_dim=config.hidden, sample_size=2 * config.base_size,
        caption_channels=config.caption_width, interpolation_scale=config.position_scale,
        use_additional_conditions=False)
    model.to(device, dtype).eval()
    model.load_state_dict(to_diffusers(state))
    return model


def diffusers_pass(model: Any, given: dict) -> torch.Tensor:
    return model(given["latent"], encoder_hidden_states=given["context"], timestep=given["timestep"],
                 added_cond_kwargs={"resolution": None, "aspect_ratio": None}, return_dict=False)[0][:, :4]


def diffusers_run(config: PixArtConfig, state: dict, given: dict, dtype: torch.dtype, device: str) -> Run:
    return partial(diffusers_pass, diffusers_network(config, state, dtype, device), given)


def native_run(host: Path, config: PixArtConfig, state: dict, given: dict, dtype: torch.dtype, device: str) -> Run:
    sys.path.insert(0, str(host))
    sys.argv = sys.argv[:1] + (["--cpu"] if device == "cpu" else [])
    import comfy.options
    comfy.options.enable_args_parsing()
    import comfy.ops
    from comfy.ldm.pixart.pixartms import PixArtMS
    model = PixArtMS(input_size=2 * config.base_size, depth=config.depth, micro_condition=False, dtype=dtype,
                     hidden_size=config.hidden, num_heads=config.heads, caption_channels=config.caption_width,
                     pe_interpolation=config.position_scale, device=device, operations=comfy.ops.disable_weight_init)
    model.load_state_dict(state, strict=False)
    model.to(dtype).eval()
    return lambda: model(given["latent"], given["timestep"], given["context"])
