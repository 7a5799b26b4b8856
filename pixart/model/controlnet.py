"""The ControlNet-Transformer of PixArt-delta (section 4): trainable copies of the first blocks that steer the base.

Copy 0 sees the output of base block 0, and the output of copy i is added to the input of base block i + 1. So one pass
through the copies, before the base runs, gives every residual; only block 0 and the embedders of the base are needed.

Shapes: B batch, H x W latent pixels, N image tokens, L caption tokens, C caption width, D width.
"""
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import PixArtConfig
from .attention import Attend, Options, score_bias, sdpa
from .block import PixArtBlock
from .flexdit import NO_CONTROL, FlexDiT
from .layers import Ops
from .transformer import PixArtTransformer


class ControlBlock(nn.Module):
    """A copy of a base block, and the projections around it that start at zero."""

    def __init__(self, config: PixArtConfig, index: int, ops: Ops, attend: Attend, **factory: Any) -> None:
        super().__init__()
        self.copied_block = PixArtBlock(config, index, ops, attend, **factory)
        self.after_proj = ops.Linear(config.hidden, config.hidden, **factory)
        if index == 0:
            self.before_proj = ops.Linear(config.hidden, config.hidden, **factory)


class PixArtControlNet(nn.Module):
    """The copies, under the names of the published files: controlnet.{i}.copied_block, after_proj, before_proj.

    `config` is that of the base; `ops`, `attend`, `dtype` and `device` as for PixArtTransformer. The base itself is
    handed to `forward` and never kept: its block 0 and embedders are used as they are at that moment, patches included.
    """

    def __init__(self, config: PixArtConfig, blocks: int, ops: Ops = nn, attend: Attend = sdpa,
                 dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> None:
        super().__init__()
        if not 1 <= blocks < config.depth:
            raise ValueError(f"a ControlNet of {blocks} blocks was asked for; a base with {config.depth} blocks takes "
                             f"1 to {config.depth - 1}")
        self.config, self.dtype = config, dtype
        self.recompute = False      # training: trade a second forward of each copy for its activations
        self.controlnet = nn.ModuleList(ControlBlock(config, i, ops, attend, dtype=dtype, device=device)
                                        for i in range(blocks))

    @classmethod
    def copy_of(cls, base: PixArtTransformer, blocks: int, attend: Attend = sdpa) -> "PixArtControlNet":
        """The untrained ControlNet of a base: exact copies, zero projections, so that it changes nothing yet."""
        weight = base.x_embedder.proj.weight
        control = cls(base.config, blocks, attend=attend, dtype=weight.dtype, device=weight.device)
        for own, theirs in zip(cast(list[ControlBlock], control.controlnet), base.blocks):
            own.copied_block.load_state_dict(theirs.state_dict())
            for name, parameter in own.named_parameters():
                if "copied_block" not in name:
                    nn.init.zeros_(parameter)
        return control

    def forward(self, base: PixArtTransformer, hint: Tensor, latent: Tensor, timestep: Tensor, context: Tensor,
                mask: Tensor | None = None, size: Tensor | None = None, aspect: Tensor | None = None,
                options: Options = None) -> list[Tensor | None]:
        """The `control` argument of the base's forward: None, then a residual (B, N, D) for each of its next blocks.

        hint (B, channels, H, W): VAE latent, scaled like `latent`, of the image to follow, in [-1, 1]. All other
        arguments are those of the base's forward.
        """
        self.check(base, hint, latent)
        inputs = base.embed(latent, timestep, context, size, aspect)
        hint_tokens, _ = base.embed_latent(hint)                                        # (B, N, D)
        bias = None if mask is None else score_bias(mask, latent.dtype)                 # (B, 1, 1, L)
        shared = (inputs.text, inputs.modulation, inputs.grid, bias, options)
        copies = cast(list[ControlBlock], self.controlnet)
        x = base.blocks[0](inputs.tokens, *shared)                                      # (B, N, D)
        x = x + copies[0].before_proj(hint_tokens)                                      # (B, N, D)
        residuals: list[Tensor | None] = [None]
        for copy in copies:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(copy.copied_block, x, *shared, use_reentrant=False)      # (B, N, D)
            else:
                x = copy.copied_block(x, *shared)                                       # (B, N, D)
            residuals.append(copy.after_proj(x))                                        # (B, N, D)
        return residuals

    def check(self, base: PixArtTransformer, hint: Tensor, latent: Tensor) -> None:
        """Refuse a base or a hint that cannot belong to this ControlNet."""
        if isinstance(base, FlexDiT):
            raise ValueError(NO_CONTROL)
        ours, theirs = self.config, base.config
        if ours.hidden != theirs.hidden or ours.heads != theirs.heads:
            raise ValueError(f"this ControlNet is {ours.hidden} wide with {ours.heads} heads, the model "
                             f"{theirs.hidden} with {theirs.heads}. Load the ControlNet that was made for this model.")
        if len(self.controlnet) >= theirs.depth:
            raise ValueError(f"this ControlNet has {len(self.controlnet)} blocks, the model only {theirs.depth}. Load "
                             "the ControlNet that was made for this model; a model has at least one block more.")
        if hint.ndim == latent.ndim and hint.shape[1:2] != latent.shape[1:2]:
            raise ValueError(f"the VAE of the hint makes latents of {hint.shape[1]} channels, PixArt's have "
                             f"{latent.shape[1]}; use the VAE of the model")
        if hint.shape != latent.shape:
            raise ValueError(f"the hint's latent has shape {tuple(hint.shape)}, the image's {tuple(latent.shape)}; "
                             "resize the hint to the image and encode it with the same VAE")


class Controlled(nn.Module):
    """A base with its ControlNet as one network, with the base's forward and the hint as a further argument."""

    def __init__(self, base: PixArtTransformer, control: PixArtControlNet) -> None:
        super().__init__()
        self.base, self.control, self.config = base, control, base.config

    def forward(self, latent: Tensor, timestep: Tensor, context: Tensor, mask: Tensor | None = None,
                size: Tensor | None = None, aspect: Tensor | None = None, hint: Tensor | None = None,
                strength: float = 1.0, learned_variance: bool = False) -> Tensor:
        """As PixArtTransformer.forward; hint (B, channels, H, W) or None, strength scales every residual."""
        residuals = None
        if hint is not None and strength != 0:
            residuals = self.control(self.base, hint, latent, timestep, context, mask, size, aspect)
            if strength != 1:
                residuals = [None if residual is None else residual * strength for residual in residuals]
        return self.base(latent, timestep, context, mask, size, aspect, residuals, learned_variance=learned_variance)
