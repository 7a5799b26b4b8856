"""A MODEL's transformer without the host around it: weights of its own, which may be trained and thrown away."""
from typing import Any

import torch
from torch import Tensor

from ...pixart.checkpoint.layouts import parameter_name
from ...pixart.model.attention import matmul_attention, sdpa
from ...pixart.model.flexdit_config import FlexDiTConfig
from ...pixart.model.transformer import PixArtTransformer
from .quantized import is_quantized

COMBINED_PREFIX = "model.diffusion_model."
SHORT = 1024            # tokens up to which plain matrix attention is the faster one to train on a CPU


def bare_transformer(model: Any, dtype: torch.dtype, side: int) -> PixArtTransformer:
    """A copy on the CPU of a MODEL of ours, its LoRAs merged. side: of the square images it is for, in pixels.

    Call it outside of inference mode: the host's weights are inference tensors, copies made there are too.
    """
    if is_quantized(model):
        raise ValueError("this MODEL has quantised layers, which cannot be trained; load it with weight_dtype bf16 or "
                         "fp32, or from its original weights")
    config = model.model.model_config.pixart
    if isinstance(config, FlexDiTConfig):
        raise ValueError("this MODEL is a FlexDiT, which this node does not take; load the PixArt model it was made "
                         "from")
    on_cpu = model.load_device.type == "cpu"
    few = (side // 8 // config.patch) ** 2 <= SHORT
    bare = PixArtTransformer(config, attend=matmul_attention if on_cpu and few else sdpa, device="meta")
    copies = {name: tensor.to(dtype, copy=True) for name, tensor in weights(model).items()}
    bare.load_state_dict(copies, strict=True, assign=True)
    return bare


@torch.inference_mode()     # newer hosts wrap unpatched tensors in parameters, which fails otherwise
def weights(model: Any) -> dict[str, Tensor]:
    """As the host would save them, on the CPU, under the names of PixArtTransformer; some are the host's own."""
    from comfy import model_management
    if hasattr(model, "state_dict_for_saving"):             # newer hosts merge tensor by tensor
        model_management.load_models_gpu([model])
        found = model.state_dict_for_saving()
    else:
        model_management.load_models_gpu([model], force_patch_weights=True)
        found = model.model.state_dict_for_saving()
    named = {name.removeprefix(COMBINED_PREFIX): tensor for name, tensor in found.items()
             if name.startswith(COMBINED_PREFIX)}
    named = {parameter_name(name): tensor for name, tensor in named.items()}
    own = model.model.diffusion_model.state_dict()          # what is saved besides tells which model it is
    patched = {name for name in own if f"diffusion_model.{name}" in model.backup}   # in place; some hosts do it twice
    return {name: (tensor if name in patched else named.get(name, tensor)).to("cpu") for name, tensor in own.items()}
