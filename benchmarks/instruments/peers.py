"""Other implementations of PixArt with given weights: diffusers, and the host's own. Both import what they need."""
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pixart.checkpoint import to_diffusers
from pixart.config import PixArtConfig
from pixart.model.transformer import PixArtTransformer

from .networks import given, transformer
from .notes import Notes
from .setting import Absent, Setting

Run = Callable[[], torch.Tensor]
HOST_LEAST = 32         # latent pixels


def implementations(config: PixArtConfig, side: int, batch: int, tokens: int, dtype: torch.dtype, setting: Setting,
                    notes: Notes) -> dict[str, Run]:
    """One pass of ours and of each installed other: equal weights and inputs, no masks, no size conditions.

    side: latent pixels.
    """
    model = transformer(config, dtype, setting.device)
    state, inputs = published(model), shared_inputs(config, side, batch, tokens, dtype, setting)
    runs: dict[str, Run] = {"ours": partial(model, **inputs)}
    others: dict[str, Any] = {"diffusers": partial(diffusers_run, config, state, inputs, dtype, setting.device),
                              "host, native": partial(native, config, state, inputs, side, dtype, setting)}
    for title, make in others.items():
        try:
            runs[title] = make()
        except (ImportError, Absent) as error:
            notes.absent(f"beside {title}", str(error).splitlines()[0])
        except Exception as error:          # if one implementation breaks, the others are still compared
            traceback.print_exc()
            notes.failed(f"beside {title}", error)
    return runs


def published(model: PixArtTransformer) -> dict[str, torch.Tensor]:
    """The model's weights by the names of published files."""
    return {key.replace("_table.weight", "_table"): value for key, value in model.state_dict().items()}


def shared_inputs(config: PixArtConfig, side: int, batch: int, tokens: int, dtype: torch.dtype,
                  setting: Setting) -> dict[str, torch.Tensor]:
    """Inputs that all implementations take. side: latent pixels."""
    inputs = given(config, [side] * 2, [tokens] * batch, setting.device, dtype)
    return {key: inputs[key] for key in ("latent", "timestep", "context")}


def native(config: PixArtConfig, state: dict, inputs: dict, side: int, dtype: torch.dtype, setting: Setting) -> Run:
    """The host's positions round latent pixels to multiples of 64: below half of that to 0."""
    if side <= HOST_LEAST:
        raise Absent(f"the host's own PixArt cannot make {8 * side} px (positions divided by 0)")
    return native_run(setting.host(), config, state, inputs, dtype, setting.device)


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


def diffusers_pass(model: Any, inputs: dict) -> torch.Tensor:
    return model(inputs["latent"], encoder_hidden_states=inputs["context"], timestep=inputs["timestep"],
                 added_cond_kwargs={"resolution": None, "aspect_ratio": None}, return_dict=False)[0][:, :4]


def diffusers_run(config: PixArtConfig, state: dict, inputs: dict, dtype: torch.dtype, device: str) -> Run:
    return partial(diffusers_pass, diffusers_network(config, state, dtype, device), inputs)


def native_run(host: Path, config: PixArtConfig, state: dict, inputs: dict, dtype: torch.dtype, device: str) -> Run:
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
    return lambda: model(inputs["latent"], inputs["timestep"], inputs["context"])
