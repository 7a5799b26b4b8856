"""The PixArt transformer: latent, timestep and caption in, predicted noise out.

Shapes: B batch, H x W latent pixels, h x w tokens (N = h * w), D width, L caption tokens, C caption width.
Submodule names equal the names in the published .pth files, so these load with strict=True.
"""
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..config import PixArtConfig
from .attention import Attend, Options, score_bias, sdpa
from .block import FinalLayer, PixArtBlock
from .embedders import CaptionEmbed, PatchEmbed, ScalarEmbed
from .layers import Ops
from .policy import Pass, Policy, Step, asked_for_branches, composed
from .positions import PositionTables


class BlockInputs(NamedTuple):
    """Latent, timestep and caption, embedded for the first block."""

    tokens: Tensor               # (B, N, D), positions added
    text: Tensor                 # (B, L, D)
    time: Tensor                 # (B, D), modulates the final layer
    modulation: Tensor           # (B, 6, D), shared by all blocks
    grid: tuple[int, int]        # (h, w) in tokens, N = h * w


class PixArtTransformer(nn.Module):
    """PixArt-alpha, -delta and -Sigma of any depth and width.

    `ops` supplies Linear, Conv2d and LayerNorm (torch.nn by default), `attend` the attention kernel; a host passes
    its own. The dtype of the latent is the dtype of the computation; timesteps, sizes and positions are embedded
    in float32 whatever that is.
    """

    def __init__(self, config: PixArtConfig, ops: Ops = nn, attend: Attend = sdpa,
                 dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        self.positions = PositionTables(config.hidden, config.base_size, config.position_scale)
        self.recompute = False      # training: trade a second forward of each block for its activations
        width, factory = config.hidden, {"dtype": dtype, "device": device}
        self.x_embedder = PatchEmbed(config.channels, width, config.patch, ops, **factory)
        self.t_embedder = ScalarEmbed(width, ops, **factory)
        if config.micro_conditioning:
            self.csize_embedder = ScalarEmbed(width // 3, ops, **factory)
            self.ar_embedder = ScalarEmbed(width // 3, ops, **factory)
        self.t_block = nn.Sequential(nn.SiLU(), ops.Linear(width, 6 * width, **factory))
        self.y_embedder = CaptionEmbed(config.caption_width, width, config.caption_tokens, ops, **factory)
        self.blocks = nn.ModuleList(self.make_block(i, ops, attend, **factory) for i in range(config.depth))
        self.final_layer = FinalLayer(config, ops, **factory)

    def make_block(self, index: int, ops: Ops, attend: Attend, **factory: Any) -> PixArtBlock:
        """Block `index`; subclasses with other blocks override it."""
        return PixArtBlock(self.config, index, ops, attend, **factory)

    def forward(self, latent: Tensor, timestep: Tensor, context: Tensor, mask: Tensor | None = None,
                size: Tensor | None = None, aspect: Tensor | None = None,
                control: Sequence[Tensor | None] | None = None, policies: Sequence[Policy] = (),
                step: Step | None = None, options: Options = None, learned_variance: bool = False) -> Tensor:
        """Predict the noise in a latent.

        latent (B, channels, H, W), scaled by `config.latent_scale`, any H, W >= 2; odd sides are padded by
        repeating the border and cropped from the result. timestep (B,) 0..999, fractions allowed. context (B, L, C)
        from the text encoder, mask (B, L) bool with True = a real token, or None for all. size (B, 2) height and
        width in pixels and aspect (B,) height / width matter with micro-conditioning only; by default those of the
        latent. control: entry i is added to the input of block i, (B, N, D) or None. policies may replace what
        blocks compute, the first one is asked first; step tells them what the rows are, and is unused without them.
        options goes to `attend`.
        Returns the noise (B, channels, H, W), or (B, 2 * channels, H, W) with the variance logits behind it.
        """
        self.check(latent, timestep, context, mask, control, step, size, aspect)
        height, width = latent.shape[-2:]
        inputs = self.embed(latent, timestep, context, size, aspect)
        bias = None if mask is None else score_bias(mask, latent.dtype)                 # (B, 1, 1, L)
        p = Pass(self, inputs.tokens, inputs.text, bias, inputs.modulation, inputs.grid, control, options, step,
                 timestep)
        tokens = self.run_stack(p, policies)                                            # (B, N, D)
        patches = self.final_layer(tokens, inputs.time)                                 # (B, N, patch^2 * out)
        output = self.unpatchify(patches, inputs.grid)[:, :, :height, :width]           # (B, 2 * channels, H, W)
        return output if learned_variance else output[:, :self.config.channels]

    def check(self, latent: Tensor, timestep: Tensor, context: Tensor, mask: Tensor | None,
              control: Sequence[Tensor | None] | None, step: Step | None = None, size: Tensor | None = None,
              aspect: Tensor | None = None) -> None:
        """Refuse shapes that do not fit together, naming both sides of the mismatch."""
        config, batch = self.config, latent.shape[0]
        if latent.ndim != 4 or latent.shape[1] != config.channels or min(latent.shape[-2:]) < 2:
            raise ValueError(f"latent has shape {tuple(latent.shape)}; this PixArt model takes "
                             f"(batch, {config.channels}, height >= 2, width >= 2)")
        if context.ndim != 3 or context.shape[2] != config.caption_width:
            raise ValueError(f"text features have shape {tuple(context.shape)}; this PixArt model takes (batch, "
                             f"tokens, {config.caption_width}). Use the text encoder that belongs to it.")
        if timestep.shape != (batch,) or context.shape[0] != batch:
            raise ValueError(f"batch sizes differ: latent {batch}, timestep {tuple(timestep.shape)}, "
                             f"text {context.shape[0]}")
        if mask is not None and (mask.shape != context.shape[:2] or mask.dtype != torch.bool):
            raise ValueError(f"mask is {tuple(mask.shape)} {mask.dtype}; expected {tuple(context.shape[:2])} bool")
        for name, given, shape in (("size", size, (batch, 2)), ("aspect", aspect, (batch,))):
            if given is not None and given.shape != shape:
                raise ValueError(f"{name} is {tuple(given.shape)}; expected {shape}")
        if control is not None and len(control) > config.depth:
            raise ValueError(f"control has {len(control)} residuals, this model {config.depth} blocks")
        if step is not None and len(step.lanes) != batch:
            raise ValueError(f"the step names {len(step.lanes)} lanes, the latent has {batch} rows")

    def embed(self, latent: Tensor, timestep: Tensor, context: Tensor, size: Tensor | None,
              aspect: Tensor | None) -> BlockInputs:
        """Everything the blocks work on; arguments as in `forward`."""
        tokens, grid = self.embed_latent(latent)                                        # (B, N, D)
        time = self.embed_time(timestep, latent, size, aspect)                          # (B, D)
        modulation = self.t_block(time).unflatten(1, (6, -1))                           # (B, 6, D)
        text = self.y_embedder(context.to(latent.dtype))                                # (B, L, D)
        return BlockInputs(tokens, text, time, modulation, grid)

    def embed_latent(self, latent: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(B, channels, H, W) -> tokens with positions (B, N, D) and their grid (h, w)."""
        config = self.config
        bottom, right = (-side % config.patch for side in latent.shape[-2:])
        if bottom or right:
            latent = F.pad(latent, (0, right, 0, bottom), mode="replicate")
        grid = (latent.shape[-2] // config.patch, latent.shape[-1] // config.patch)
        return self.x_embedder(latent) + self.positions.like(latent, grid), grid        # (B, N, D)

    def embed_time(self, timestep: Tensor, latent: Tensor, size: Tensor | None, aspect: Tensor | None) -> Tensor:
        """Timestep, and image size and ratio where the model knows them, -> (B, D)."""
        time = self.t_embedder(timestep, latent.dtype)                                  # (B, D)
        if not self.config.micro_conditioning:
            return time
        batch, _, height, width = latent.shape
        if size is None:        # filled on the device: a tensor from a list would wait for its copy there
            sides = [torch.full((batch,), 8.0 * side, device=latent.device) for side in (height, width)]
            size = torch.stack(sides, dim=1)                                            # (B, 2)
        if aspect is None:
            aspect = torch.full((batch,), height / width, device=latent.device)         # (B,)
        known = self.csize_embedder(size.reshape(-1), latent.dtype)                     # (2 B, D / 3)
        known = known.unflatten(0, (batch, 2)).flatten(1)                               # (B, 2 D / 3)
        return time + torch.cat([known, self.ar_embedder(aspect, latent.dtype)], dim=1)     # (B, D)

    def run_stack(self, p: Pass, policies: Sequence[Policy]) -> Tensor:
        """(B, N, D) through all blocks, in the order and to the extent the policies want."""
        if policies and torch.compiler.is_compiling():
            return self.run_untraced(p, policies)
        return self.ask_stack(p, policies)

    def ask_stack(self, p: Pass, policies: Sequence[Policy]) -> Tensor:
        """`run_stack` where nothing is being traced."""
        return composed(policies, "stack", (), partial(self.run_blocks, policies=policies))(p)

    @torch._disable_dynamo      # torch.compiler.disable, without importing the compiler, which takes seconds
    def run_untraced(self, p: Pass, policies: Sequence[Policy]) -> Tensor:
        """Policies decide anew in every step: a traced decision would be frozen, or cost a graph per step."""
        return self.ask_stack(p, policies)

    def run_blocks(self, p: Pass, policies: Sequence[Policy]) -> Tensor:
        for index, block in enumerate(cast(Iterable[PixArtBlock], self.blocks)):
            if policies:
                run = partial(self.run_block, index, block, policies=policies)
                p = p.with_x(composed(policies, "block", (index,), run)(p))             # (B, N, D)
            else:
                p = p.with_x(self.compute(block, p.controlled(index)))                  # (B, N, D)
        return p.x

    def run_block(self, index: int, block: PixArtBlock, p: Pass, policies: Sequence[Policy]) -> Tensor:
        """One block: in one piece, or branch by branch if a policy intercepts branches."""
        p = p.controlled(index)
        if not asked_for_branches(policies):
            return self.compute(block, p)
        rows = block.scale_shift_table(p.modulation)                                    # six of (B, 1, D)
        for name in block.branches:
            update = composed(policies, "branch", (index, name), partial(self.compute, block, only=name))(p)
            p = p.with_x(block.join(name, p.x, update, rows))                           # (B, N, D)
        return p.x

    def compute(self, block: PixArtBlock, p: Pass, only: str | None = None) -> Tensor:
        """The call that recomputation and compilation wrap; policies are asked outside of it, once."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, p.x, p.text, p.modulation, p.grid, p.mask, p.options, only, use_reentrant=False)
        return block(p.x, p.text, p.modulation, p.grid, p.mask, p.options, only)

    def unpatchify(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N, patch * patch * channels), channel fastest, -> (B, channels, h * patch, w * patch)."""
        p = self.config.patch
        return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=grid[0], w=grid[1], p=p, q=p)
