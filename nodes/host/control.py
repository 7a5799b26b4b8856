"""PixArtControlNet as a ControlNet of the host: its Apply nodes, chaining, strength and memory management work on it.

All residuals of a pass are computed before the base runs (see pixart.model.controlnet), so what the host gets is the
list of tensors it knows how to weigh, merge and hand to the model.
"""
import functools
import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...pixart.checkpoint.control import CONTROL_FAMILIES, read_control
from ...pixart.config import PixArtConfig
from ...pixart.model.controlnet import PixArtControlNet
from .conditioning import mask_of
from .mixin import Mixin
from .model import choose_dtypes
from .transformer import HostTransformer, attend, host_table, network_in
from .vae import check_vae
from .weights import copied, fill

logger = logging.getLogger(__name__)

SHARED_CONDS = ("text_mask", "c_size", "c_ar")       # what the copies need to know beside the text


class HostControlNet(PixArtControlNet):
    """The copies, built of the host's layers, with the call that the host's ControlNet makes."""

    def __init__(self, config: PixArtConfig, blocks: int, ops: Any, dtype: torch.dtype | None, device: Any) -> None:
        super().__init__(config, blocks, ops=ops, attend=attend, dtype=dtype, device=device)
        for block in self.controlnet:
            block.copied_block.scale_shift_table = host_table(block.copied_block.scale_shift_table, ops)

    def forward(self, x: Tensor, hint: Tensor, timesteps: Tensor, context: Tensor,
                live_base: Callable[[], HostTransformer], exact_timesteps: Tensor, weights: Sequence[float],
                options: Mapping | None = None, c_size: Tensor | None = None, c_ar: Tensor | None = None,
                text_mask: Tensor | None = None) -> dict[str, list[Tensor | None]]:
        """Arguments as in HostTransformer.forward, with x, hint (B or 1, 4, H, W) and context in the data type of base.

        timesteps: rounded to that type by the host, so not used; exact_timesteps (B,) float32. live_base gives the
        base, ready to run. weights: a factor for each residual, 0 drops it. Returns the host's control dict; every
        tensor in it is new and the caller's own.
        """
        aspect = None if c_ar is None else c_ar.view(torch.float32).flatten()
        size = None if c_size is None else c_size.float()
        found = super().forward(live_base(), hint.expand(x.shape[0], -1, -1, -1), x, exact_timesteps, context,
                                mask_of(text_mask), size, aspect, options)
        return {"output": [None, *(weighted_residual(residual, weight)
                                   for residual, weight in zip(found[1:], weights))]}


def weighted_residual(residual: Tensor, weight: float) -> Tensor | None:
    if weight == 0:
        return None
    return residual if weight == 1 else residual * weight


def block_weights(blocks: int, fade: float, first: int) -> list[float]:
    """Factors of the residuals: (1 - fade)^i for number i = 0, 1, ..., and 0 from number `first` on (0: none is cut).

    Raises ValueError for a fade outside 0..1 or a negative number.
    """
    if not 0 <= fade <= 1:
        raise ValueError(f"fade is {fade}; it must lie between 0 (no fading) and 1 (only the first block)")
    if first < 0:
        raise ValueError(f"blocks is {first}; give the number of blocks to control, or 0 for all")
    return [(1 - fade) ** index if index < (first or blocks) else 0.0 for index in range(blocks)]


class _PixArtControl(Mixin):
    """What differs from the host's ControlNet class."""

    fade, first_blocks = 0.0, 0
    description, latent_space = "", None    # latent_space: of the base it was made for, where the file tells
    running: weakref.ref | None = None      # the host's model object of this run, which belongs to another patcher

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        """Look at the MODEL before the first step: refuse one that cannot be controlled, compute in its data type."""
        base = network_of(model)
        check_fits(self.control_model, base, self.latent_space)
        if self.vae is None:
            raise ValueError("the PixArt ControlNet needs a VAE for its image; connect the one of your model to the "
                             "input `vae` of Apply PixArt ControlNet (or of the stock Apply ControlNet)")
        self.cleanup()                      # an interrupted run leaves its hint, perhaps of another data type
        super().pre_run(model, percent_to_timestep_function)
        self.running = weakref.ref(model)
        self.latent_format = model.latent_format
        self.manual_cast_dtype = model.manual_cast_dtype or model.get_dtype()

    def get_control(self, x_noisy: Tensor, t: Tensor, cond: dict, batched_number: int,
                    transformer_options: dict) -> dict | None:
        """Called by the host in every pass, just before the model, whose weights are loaded and patched by then."""
        if "crossattn_controlnet" in cond:      # other text for control only: the mask is not its own
            cond = {name: value for name, value in cond.items() if name != "text_mask"}
        run = {"live_base": self.live_base(), "options": transformer_options,
               "weights": block_weights(len(self.control_model.controlnet), self.fade, self.first_blocks),
               "exact_timesteps": self.model_sampling_current.timestep(t).float()}
        self.extra_args.update(run)
        try:
            return super().get_control(x_noisy, t, cond, batched_number, transformer_options)
        finally:
            for name in run:
                del self.extra_args[name]

    def live_base(self) -> Callable[[], HostTransformer]:
        """A call that gives the base with the weights of this very prompt.

        Encoding the hint makes the host load its models again, which takes off the hooks (LoRAs) of the prompt; they
        must be back for the control and for the pass of the base that follows it.
        """
        model = self.running() if self.running is not None else None
        if model is None:
            raise RuntimeError("the host asked a ControlNet for residuals outside of a sampling")
        patcher = model.current_patcher
        hooks = patcher.current_hooks

        def base() -> HostTransformer:
            if hooks is not None:
                patcher.apply_hooks(hooks)
            return network_of(model)
        return base

    def copy(self) -> "_PixArtControl":
        other = type(self)(None, load_device=self.load_device, manual_cast_dtype=self.manual_cast_dtype)
        other.control_model, other.control_model_wrapped = self.control_model, self.control_model_wrapped
        self.copy_to(other)
        return other

    def copy_to(self, other: "_PixArtControl") -> None:
        super().copy_to(other)
        other.fade, other.first_blocks = self.fade, self.first_blocks
        other.description, other.latent_space = self.description, self.latent_space

    def deepclone_multigpu(self, load_device: Any, autoregister: bool = False) -> "_PixArtControl":
        """A copy with weights of its own for another device."""
        from comfy import model_management, model_patcher
        other = self.copy()
        other.control_model = copied(self.control_model)
        other.control_model_wrapped = model_patcher.ModelPatcher(
            other.control_model, load_device=load_device, offload_device=model_management.unet_offload_device())
        other.load_device = load_device
        if autoregister:
            self.multigpu_clones[load_device] = other
        return other

    def inference_memory_requirements(self, dtype: torch.dtype) -> int:
        """Bytes of the residuals of one image with its negative, at the size the base was trained on."""
        config = self.control_model.config
        numbers = 2 * len(self.control_model.controlnet) * config.base_size ** 2 * config.hidden
        return numbers * dtype.itemsize + super().inference_memory_requirements(dtype)

    def cleanup(self) -> None:
        self.running = None
        super().cleanup()


def network_of(model: Any) -> HostTransformer:
    """The transformer of a MODEL; ValueError for what cannot take a PixArt ControlNet."""
    network = network_in(model)
    if network is None:
        found = type(getattr(model.diffusion_model, "_orig_mod", model.diffusion_model)).__name__
        raise ValueError(f"a PixArt ControlNet cannot control this MODEL ({type(model).__name__} with {found}). Load "
                         "a PixArt model with Load PixArt; a PixArt model loaded by a stock node ignores ControlNets.")
    return network


def check_fits(control: PixArtControlNet, base: HostTransformer, latent_space: str | None) -> None:
    """Refuse a base of another shape or family before the first step."""
    nothing = torch.empty(0)                # hint and latent are checked in every pass
    control.check(base, nothing, nothing)
    if latent_space not in (None, base.config.latent_space):
        raise ValueError(f"this ControlNet was made for {CONTROL_FAMILIES[latent_space]}, the MODEL is "
                         f"{CONTROL_FAMILIES[base.config.latent_space]}. Load the ControlNet that was made for this "
                         "model.")


def to_rgb(images: Tensor) -> Tensor:
    """(B, 1, 3 or 4, H, W) -> (B, 3, H, W): grey is repeated, alpha dropped."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images[:, :3]


@functools.cache
def control_class() -> Any:
    from comfy import controlnet
    return type("PixArtControl", (_PixArtControl, controlnet.ControlNet), {})


def as_control_net(network: HostControlNet) -> Any:
    """CONTROL_NET of the host around a network."""
    from comfy import latent_formats, model_management
    formats = {"sd": latent_formats.SD15, "sdxl": latent_formats.SDXL}
    return control_class()(network, compression_ratio=1, latent_format=formats[network.config.latent_space](),
                           load_device=model_management.get_torch_device(), extra_conds=list(SHARED_CONDS),
                           preprocess_image=to_rgb)


def load_control_net(path: str | Path, weight_dtype: str = "auto") -> Any:
    """Read a PixArt ControlNet in any layout; returns a CONTROL_NET of the host.

    Raises what `read_control` raises for other files, and ValueError for an unknown weight_dtype.
    """
    from comfy import model_management, ops
    found = read_control(path)
    parameters = sum(tensor.numel() for tensor in found.state_dict.values())
    kept, _ = choose_dtypes(weight_dtype, found.dtype, found.config, parameters, model_management.get_torch_device())
    # Casting layers, because the copies compute in the data type of whatever base they are used with.
    network = HostControlNet(found.config, found.blocks, ops.manual_cast, kept, model_management.unet_offload_device())
    fill(network, found.state_dict)
    logger.info("%s: weights kept in %s", found.path.name, kept)
    control = as_control_net(network.eval().requires_grad_(False))
    control.description = found.description
    control.latent_space = found.config.latent_space if found.knows_base else None
    return control


def apply_control(positive: list, negative: list | None, control_net: Any, image: Tensor, vae: Any, strength: float,
                  start_percent: float, end_percent: float, fade: float, blocks: int) -> tuple[list, Any]:
    """What the host's own Apply ControlNet does, with a weight for each block. Returns new conditionings.

    Without a negative, that output blocks whatever uses it, with a message.
    """
    from comfy_execution.graph_utils import ExecutionBlocker

    from nodes import ControlNetApplyAdvanced  # type: ignore[attr-defined]  # the host's `nodes`, not this pack's
    if not isinstance(control_net, control_class()):
        raise ValueError(f"this CONTROL_NET is a {type(control_net).__name__}, not a PixArt ControlNet; load one with "
                         "Load PixArt ControlNet, or use the stock Apply ControlNet for other models")
    check_vae(vae)
    weighed = control_net.copy()
    weighed.fade, weighed.first_blocks = fade, blocks
    block_weights(len(weighed.control_model.controlnet), fade, blocks)
    controlled = ControlNetApplyAdvanced().apply_controlnet(positive, negative or [], weighed, image, strength,
                                                            start_percent, end_percent, vae=vae)
    if negative is None:
        return controlled[0], ExecutionBlocker("Apply PixArt ControlNet has no negative to give on, because none is "
                                               "connected to it; connect one, or use the prompt's own")
    return controlled
