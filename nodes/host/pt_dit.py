"""PT-DiT as a MODEL of the host: its own network, the host's rectified flow, the host's samplers as they are.

The host's flow has the velocity point from image to noise, PT-DiT the other way round.
"""
import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...pixart.mini import is_mini
from ...pixart.pt_dit.config import PTDiTConfig
from ...pixart.pt_dit.load import PT_DIT_KEY, by_parameter, pt_dit_config_tensor, recognise_pt_dit
from ...pixart.pt_dit.transformer import PTDiT
from ...pixart.weights.errors import CheckpointError
from ...pixart.weights.reader import Weights
from .conditioning import mask_of, text_conds
from .foreign import needs, refuse_conditions
from .mixin import Mixin
from .notices import notice_size
from .transformer import attend, host_table
from .weights import TABLE, fill, is_dynamic

logger = logging.getLogger(__name__)


class HostPTDiT(PTDiT):
    """The network inside the host's model object. Submodules, and so the names of all weights, are inherited."""

    def __init__(self, config: PTDiTConfig, ops: Any, dtype: torch.dtype | None, device: Any) -> None:
        super().__init__(config, ops=ops, attend=attend, dtype=dtype, device=device)
        for owner in (*self.blocks, self.final_layer):
            for name in (TABLE, f"shifted_{TABLE}"):
                if hasattr(owner, name):
                    setattr(owner, name, host_table(getattr(owner, name), ops))

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, control: Mapping | None = None,
                transformer_options: Mapping | None = None, text_mask: Tensor | None = None,
                **_: object) -> Tensor:
        """x (B, 4, H, W) scaled, timesteps (B,) 0..1000, context (B, L, C) -> noise minus image (B, 4, H, W).

        text_mask as for HostTransformer. Whatever else wrappers of other packs pass is ignored.
        """
        from comfy import patcher_extension as host
        options = {} if transformer_options is None else transformer_options
        refuse_patches(control, options)
        wrappers = host.get_all_wrappers(host.WrappersMP.DIFFUSION_MODEL, options)
        executor = host.WrapperExecutor.new_class_executor(self.predict, self, wrappers)
        return executor.execute(x, timesteps, context, control, options, text_mask=text_mask)

    def predict(self, x: Tensor, timesteps: Tensor, context: Tensor, control: Mapping | None,
                transformer_options: Mapping, text_mask: Tensor | None = None, **_: object) -> Tensor:
        """What `forward` does inside of all wrappers."""
        return -super().forward(x, timesteps, context, mask_of(text_mask), transformer_options)


def refuse_patches(control: Mapping | None, options: Mapping) -> None:
    """Raises ValueError for what other nodes attach to a PixArt's blocks: here it would silently do nothing."""
    if control is not None:
        raise ValueError("a PT-DiT has no place for a ControlNet; take it out of the workflow, or load a PixArt model")
    for place in ("patches", "patches_replace"):
        for name, entries in options.get(place, {}).items():
            if entries:
                raise ValueError(needs(name).replace("PixArt", "PT-DiT"))


class _PTDiTModel(Mixin):
    """What differs from the host's BaseModel."""

    def extra_conds(self, **kwargs: Any) -> dict[str, object]:
        """Conditioning -> inputs of the network; text is made compact so that all conditions fit one pass."""
        refuse_conditions(kwargs)
        config = self.model_config.pixart
        if kwargs.get("prompt_type") == "positive" and (noise := kwargs.get("noise")) is not None:
            notice_size(config, *(8 * side for side in noise.shape[-2:]))
        out = super().extra_conds(**kwargs)
        context = kwargs.get("cross_attn")
        if context is not None:
            if context.ndim != 3 or context.shape[2] != config.caption_width:
                raise ValueError(f"the prompt was encoded to {context.shape[-1]} numbers per token, this PT-DiT takes "
                                 f"{config.caption_width}. Load its own text encoder: T5-XXL (t5-v1_1-xxl) for the "
                                 "published weights.")
            out.update(text_conds(context, kwargs.get("attention_mask"), kwargs.get("device")))
        return out


@functools.cache
def pt_dit_model_class() -> Any:
    """Not the host's PixArt, so that nodes made for PixArt refuse it."""
    from comfy import model_base

    def made(self: Any, model_config: Any, device: Any = None) -> None:
        model_base.BaseModel.__init__(self, model_config, model_base.ModelType.FLOW, device=device,
                                      unet_model=pt_dit_builder(model_config.pixart))
    return type("PTDiT", (_PTDiTModel, model_base.BaseModel), {"__init__": made})


def pt_dit_builder(config: PTDiTConfig) -> Callable[..., HostPTDiT]:
    """The function that the host calls to make the network, with its own keyword arguments."""
    def build(dtype: torch.dtype | None = None, device: Any = None, operations: Any = None,
              **_: object) -> HostPTDiT:
        return HostPTDiT(config, operations, dtype, device)
    return build


class _PTDiTHostConfig(Mixin):
    """What differs from the host's description of a PixArt-alpha, whose latents and text encoder it shares."""

    def __init__(self, config: PTDiTConfig) -> None:
        from ...pixart.mini.colours import LATENT_RGB, LATENT_RGB_BIAS
        super().__init__({"image_model": "pt_dit", "depth": config.depth, "hidden_size": config.hidden,
                          "num_heads": config.heads, "patch_size": config.patch, "in_channels": config.channels,
                          "model_channels": config.hidden})
        self.pixart = config
        self.has_null_caption = False
        self.sampling_settings = {"shift": config.flow_shift(config.resolution, config.resolution)}
        if is_mini(config):      # PixArt-mini's autoencoder, and so the colours of previews
            self.latent_format.latent_rgb_factors = [list(row) for row in LATENT_RGB]
            self.latent_format.latent_rgb_factors_bias = list(LATENT_RGB_BIAS)

    def get_model(self, state_dict: dict, prefix: str = "", device: Any = None) -> torch.nn.Module:
        return pt_dit_model_class()(self, device).eval()

    def process_unet_state_dict_for_saving(self, state_dict: dict) -> dict:
        """Names of our files, and what tells the loader how large the windows are."""
        named = {key.replace(f"{TABLE}.weight", TABLE): value for key, value in state_dict.items()}
        return super().process_unet_state_dict_for_saving(named | {PT_DIT_KEY: pt_dit_config_tensor(self.pixart)})


@functools.cache
def pt_dit_config_class() -> Any:
    from comfy import supported_models
    return type("PTDiTHostConfig", (_PTDiTHostConfig, supported_models.PixArtAlpha), {})


def holds_pt_dit(model: Any) -> bool:
    """Whether a MODEL is a PT-DiT of this pack, also under torch.compile."""
    network = getattr(model.model, "diffusion_model", None)
    return isinstance(getattr(network, "_orig_mod", network), HostPTDiT)


def load_pt_dit_model(weights: Weights, variant: str, weight_dtype: str, device: torch.device, offload: torch.device,
                make_patcher: Callable[..., Any]) -> Any:
    """A PT-DiT as a ModelPatcher. CheckpointError for a file that is damaged, or a variant of PixArt."""
    from .model import choose_dtypes
    opened = recognise_pt_dit(weights)
    if variant != "auto":
        raise CheckpointError(Path(weights.path), f"variant {variant} was chosen, but the file holds a PT-DiT",
                              "variant auto")
    state = opened.read()
    numbers = sum(tensor.numel() for tensor in state.values())
    kept, cast = choose_dtypes(weight_dtype, opened.dtype, opened.config, numbers, device)
    config = pt_dit_config_class()(opened.config)
    config.description = opened.description
    config.set_inference_dtype(kept, cast)
    logger.info("%s: weights kept in %s, computing in %s", weights.path.name, kept, cast or kept)
    model = config.get_model({})
    patcher = make_patcher(model, load_device=device, offload_device=offload)
    network = model.diffusion_model
    fill(network, by_parameter(state), is_dynamic(patcher))
    model.to(offload)
    return patcher
