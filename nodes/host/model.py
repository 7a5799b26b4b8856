"""A checkpoint of the family as a MODEL of the host: its model class, its config, its data types."""
import functools
import logging
from typing import Any

import torch

from ...pixart.checkpoint import Checkpoint, open_checkpoint
from ...pixart.checkpoint.header import to_tensors
from ...pixart.checkpoint.layouts import NULL_CAPTION
from ...pixart.checkpoint.read import open_network
from ...pixart.config import PixArtConfig
from ...pixart.dtypes import WEIGHT_DTYPES, dtype_named, dtype_or_auto
from ...pixart.mini import is_mini
from ...pixart.mini.colours import LATENT_RGB, LATENT_RGB_BIAS
from ...pixart.model.cpu_dtype import faster_dtype
from ...pixart.pt_dit.load import is_pt_dit
from ...pixart.weights.values import EIGHT_BITS
from .branches import has_branches
from .conditioning import text_conds
from .foreign import refuse_conditions
from .mixin import Mixin
from .notices import notice_size
from .pt_dit import load_pt_dit_model
from .quantized import quantized_entries, quantized_patcher
from .steps import attach
from .transformer import builder
from .weights import TABLE, fill, is_dynamic

logger = logging.getLogger(__name__)


class _PixArt(Mixin):
    """What differs from the host's own PixArt model class."""

    bytes_to_keep = 0.0         # by policies, in the sampling that is being prepared

    def memory_required(self, *args: Any, **kwargs: Any) -> float:
        """Bytes that a pass needs, and what the policies of the sampling will keep beside it."""
        return super().memory_required(*args, **kwargs) + self.bytes_to_keep

    def state_dict_for_saving(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """What the host's nodes save. ValueError where the file would not hold all that the MODEL does."""
        if has_branches(self.diffusion_model):
            raise ValueError("a file cannot hold the LoRA of this MODEL: its quantised weights stay as they are "
                             "beneath it. Load the model with weight_dtype bf16 to save it with its LoRAs, or save it "
                             "without.")
        return super().state_dict_for_saving(*args, **kwargs)

    def extra_conds(self, **kwargs: Any) -> dict[str, object]:
        """Conditioning -> inputs of the transformer, on its device. Text is made compact so that all conditions
        fit one pass. A side of 0 pixels, which the stock encode node takes, stands for that of the latent."""
        from comfy.conds import CONDRegular
        refuse_conditions(kwargs)
        noise = kwargs.get("noise")
        if noise is not None:
            sides = {"height": 8 * noise.shape[-2], "width": 8 * noise.shape[-1]}
            kwargs.update({name: side for name, side in sides.items() if kwargs.get(name) == 0})
            if kwargs.get("prompt_type") == "positive":
                notice_size(self.model_config.pixart, **sides)
        out = super().extra_conds(**kwargs)
        context, device = kwargs.get("cross_attn"), kwargs.get("device")
        if context is not None:
            check_text(context, self.model_config.pixart)
            out.update(text_conds(context, kwargs.get("attention_mask"), device))
        height, width = kwargs.get("height"), kwargs.get("width")
        if height and width:
            aspect = torch.tensor([[kwargs.get("aspect_ratio", height / width)]], dtype=torch.float32, device=device)
            out["c_size"] = CONDRegular(torch.tensor([[height, width]], dtype=torch.int32, device=device))
            out["c_ar"] = CONDRegular(aspect.view(torch.int32))     # integers pass the host's casts unrounded
        return out


def check_text(context: torch.Tensor, config: PixArtConfig) -> None:
    if context.ndim != 3 or context.shape[2] != config.caption_width:
        raise ValueError(f"the prompt was encoded to {context.shape[-1]} numbers per token, this PixArt model takes "
                         f"{config.caption_width}. Load its own text encoder: T5-XXL (t5-v1_1-xxl) for published "
                         "weights, pixart-mini/t5 for PixArt-mini.")


@functools.cache
def model_class() -> type:
    """Subclass of the host's PixArt, which is what its LoRA key map looks for."""
    from comfy import model_base

    class PixArtDelta(_PixArt, model_base.PixArt):
        def __init__(self, model_config: Any, device: Any = None) -> None:
            model_base.BaseModel.__init__(self, model_config, model_base.ModelType.EPS, device=device,
                                          unet_model=builder(model_config.pixart))
    return PixArtDelta


class _PixArtConfig(Mixin):
    """What differs from the host's descriptions of PixArt models."""

    def __init__(self, config: PixArtConfig) -> None:
        super().__init__({**self.unet_config, "depth": config.depth, "hidden_size": config.hidden,
                          "num_heads": config.heads, "patch_size": config.patch, "in_channels": config.channels,
                          "model_channels": config.hidden})     # the name of U-Nets, which some nodes look for
        self.pixart = config
        self.has_null_caption = True
        if is_mini(config):      # its autoencoder is its own, and so are the colours of previews
            self.latent_format.latent_rgb_factors = [list(row) for row in LATENT_RGB]
            self.latent_format.latent_rgb_factors_bias = list(LATENT_RGB_BIAS)

    def get_model(self, state_dict: dict, prefix: str = "", device: Any = None) -> torch.nn.Module:
        return model_class()(self, device).eval()

    def process_unet_state_dict_for_saving(self, state_dict: dict) -> dict:
        """Names of the published files, and what tells this package and other loaders which model it is."""
        named = {key.replace(f"{TABLE}.weight", TABLE): value for key, value in state_dict.items()}
        if not self.has_null_caption:
            named.pop(NULL_CAPTION, None)
        return super().process_unet_state_dict_for_saving(named | to_tensors(self.pixart))


@functools.cache
def config_class(latent_space: str) -> type:
    """The host's description of the model; it fixes latent format and previews."""
    from comfy import supported_models
    base = {"sd": supported_models.PixArtAlpha, "sdxl": supported_models.PixArtSigma}[latent_space]
    return type("PixArtHostConfig", (_PixArtConfig, base), {})


def choose_dtypes(weight_dtype: str, stored: torch.dtype, config: PixArtConfig, parameters: int,
                  device: torch.device) -> tuple[torch.dtype, torch.dtype | None]:
    """How weights are kept, and what they are cast to for computing (None: as kept).

    "auto" is the host's choice on a GPU. On a CPU the host would always say float32; there the processor decides,
    because bfloat16 is four times faster on some processors and slower on others.
    """
    from comfy import model_management as host
    from comfy.cli_args import args
    if weight_dtype not in WEIGHT_DTYPES:
        raise ValueError(f"unknown weight_dtype {weight_dtype!r}; use {', '.join(WEIGHT_DTYPES)}")
    usable = [torch.float16, torch.bfloat16, torch.float32]
    wish = dtype_or_auto(weight_dtype)
    kept: torch.dtype = wish or host.unet_dtype(model_params=parameters, supported_dtypes=usable, weight_dtype=stored)
    if device.type != "cpu":
        return kept, host.unet_manual_cast(kept, device, usable)
    forced = getattr(args, "fp32_unet", False) or getattr(args, "force_fp32", False)
    if wish is None and kept == torch.float32 and not forced:
        return faster_dtype(config.hidden), None
    if kept in (torch.float32, torch.bfloat16, torch.float64):
        return kept, None
    return kept, torch.float32 if forced else faster_dtype(config.hidden)


def computing_dtype(config: PixArtConfig, device: torch.device) -> torch.dtype:
    """What quantised weights are dequantised to, and what all others are kept in."""
    from comfy import model_management as host
    from comfy.cli_args import args
    if device.type != "cpu":
        return host.unet_manual_cast(None, device, [torch.float16, torch.bfloat16, torch.float32])
    forced = getattr(args, "fp32_unet", False) or getattr(args, "force_fp32", False)
    return torch.float32 if forced else faster_dtype(config.hidden)


def load_model(path: str, variant: str = "auto", weight_dtype: str = "auto",
               disable_dynamic: bool = False) -> Any:
    """Read a checkpoint, or a PT-DiT, and hand it to the host's memory management; returns a ModelPatcher.

    weight_dtype: "auto" keeps quantised layers as they are, any other dequantises them. Raises what `open_checkpoint`
    and reading raise for files that are not PixArt, or quantised as this host cannot run them, and ValueError for an
    unknown option.
    """
    from comfy import model_management, model_patcher
    device, offload = model_management.get_torch_device(), model_management.unet_offload_device()
    newest = getattr(model_patcher, "CoreModelPatcher", model_patcher.ModelPatcher)
    patcher_class = model_patcher.ModelPatcher if disable_dynamic else newest
    weights = open_network(path)
    if is_pt_dit(weights.tensors):
        patcher = load_pt_dit_model(weights, variant, weight_dtype, device, offload, patcher_class)
        return reloadable(patcher, path, variant, weight_dtype)
    opened = open_checkpoint(path, variant)
    quantized = quantized_entries(opened, weight_dtype)
    chosen = None
    if opened.quantized_as and not quantized:
        chosen = dtype_named(weight_dtype) if weight_dtype in WEIGHT_DTYPES[1:] else torch.bfloat16
    checkpoint = opened.read(torch.bfloat16 if chosen in EIGHT_BITS else chosen, leave_quantized=bool(quantized))
    model = build_model(checkpoint, weight_dtype, device, bool(quantized))
    if quantized:
        patcher_class = quantized_patcher(patcher_class)
    patcher = patcher_class(model, load_device=device, offload_device=offload)
    fill(model.diffusion_model, {**checkpoint.state_dict, **quantized}, is_dynamic(patcher))
    model.to(offload)       # not before: the layers of some hosts have no memory until they are filled
    return attach(reloadable(patcher, path, variant, weight_dtype), checkpoint.path, checkpoint.metadata)


def reloadable(patcher: Any, path: str, variant: str, weight_dtype: str) -> Any:
    """The same patcher, which newer hosts can load anew for another device."""
    if hasattr(patcher, "cached_patcher_init"):
        patcher.cached_patcher_init = (load_model, (path, variant, weight_dtype))
    return patcher


def build_model(checkpoint: Checkpoint, weight_dtype: str, device: torch.device, quantized: bool = False) -> Any:
    """The host's model object for a checkpoint, weights not filled in yet. quantized: some layers will be."""
    config, state = checkpoint.config, checkpoint.state_dict
    parameters = sum(tensor.numel() for tensor in state.values())
    kept: torch.dtype
    cast: torch.dtype | None
    if quantized:
        kept = cast = computing_dtype(config, device)
    else:
        kept, cast = choose_dtypes(weight_dtype, checkpoint.dtype, config, parameters, device)
    host_config = config_class(config.latent_space)(config)
    host_config.has_null_caption = checkpoint.has_null_caption
    host_config.description = checkpoint.description
    host_config.set_inference_dtype(kept, cast)
    if quantized:
        host_config.quant_config = {"mixed_ops": True}      # what the host notes where it finds a quantised layer
    logger.info("%s: weights kept in %s, computing in %s", checkpoint.path.name, kept, cast or kept)
    return host_config.get_model({})
