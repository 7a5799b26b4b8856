"""The PT-DiT network: latent, noise level and caption in, velocity out.

Shapes: B batch, H x W latent pixels, h x w tokens (N = h * w), D width, L caption tokens, C caption width.
"""
from collections.abc import Iterable
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..model.attention import Attend, Options, score_bias, sdpa
from ..model.block import FinalLayer
from ..model.embedders import Mlp, PatchEmbed, ScalarEmbed
from ..model.layers import Ops
from ..model.positions import PositionTables, Size, axis_table
from .block import PTDiTBlock, Windows
from .config import PTDiTConfig
from .windows import TokenGrid, from_windows, region_bias, to_windows


def counted_positions(h: int, w: int, width: int, scale: float) -> Tensor:
    """(h * w, width) float32: a quarter for the time of a still image, then column and row, counted in tokens.

    Each axis has sines, then cosines, of (token number) / scale, whatever the size of the image. The published code
    mixes rows up with columns where an image is not square; here every token has its own row and column.
    """
    time = torch.cat([torch.zeros(width // 8), torch.ones(width // 8)]).expand(h, w, -1)
    column = axis_table(torch.arange(w) / scale, 3 * width // 8)[None].expand(h, w, -1)
    row = axis_table(torch.arange(h) / scale, 3 * width // 8)[:, None].expand(h, w, -1)
    return torch.cat([time, column, row], dim=-1).flatten(0, 1)


class CountedPositions(PositionTables):
    """Counted positions for a model's most recent sizes."""

    def compute(self, size: Size) -> Tensor:
        h, w, device, dtype = size
        with torch.inference_mode(False):       # a cached tensor must stay usable in training
            return counted_positions(h, w, self.width, self.scale).to(device=device, dtype=dtype)


class PTDiT(nn.Module):
    """A PT-DiT of any depth and width, for still images.

    `ops` supplies Linear and Conv2d (torch.nn by default), `attend` the attention kernel; a host passes its own. The
    dtype of the latent is the dtype of the computation; noise levels and positions are embedded in float32.
    """

    def __init__(self, config: PTDiTConfig, ops: Ops = nn, attend: Attend = sdpa, dtype: torch.dtype | None = None,
                 device: torch.device | str | None = None) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        self.positions = CountedPositions(config.hidden, config.base_size, config.position_scale)
        self.recompute = False      # training: trade a second forward of each block for its activations
        width, factory = config.hidden, {"dtype": dtype, "device": device}
        self.x_embedder = PatchEmbed(config.channels, width, config.patch, ops, **factory)
        self.t_embedder = ScalarEmbed(width, ops, **factory)
        self.t_block = nn.Sequential(nn.SiLU(), ops.Linear(width, 6 * width, **factory))
        self.y_proj = Mlp(config.caption_width, width, width, ops, **factory)
        self.blocks = nn.ModuleList(PTDiTBlock(config, ops, attend, **factory) for _ in range(config.depth))
        self.final_layer = FinalLayer(config, ops, **factory)

    def forward(self, latent: Tensor, timestep: Tensor, context: Tensor, mask: Tensor | None = None,
                options: Options = None) -> Tensor:
        """Predict the velocity from noise to image.

        latent (B, channels, H, W), scaled by `config.latent_scale`, any H, W >= 2; sides that windows do not divide are
        padded by repeating the border, which attention then sees, and cropped from the result. timestep (B,) 0..1000,
        1000 times the share of noise in the latent, shifted already, fractions allowed. context (B, L, C) from the text
        encoder, mask (B, L) bool with True = a real token, or None for all. options goes to `attend`.
        Returns the velocity, image minus noise, (B, channels, H, W). A published file has as many channels again
        behind it, which nothing uses.
        """
        self.check(latent, timestep, context, mask)
        height, width = latent.shape[-2:]
        x, windows = self.embed_latent(latent)                                          # (B, N, D)
        time = self.t_embedder(timestep, latent.dtype)                                  # (B, D)
        modulation = self.t_block(time).unflatten(1, (6, -1))                           # (B, 6, D)
        text = self.y_proj(context.to(latent.dtype))                                    # (B, L, D)
        bias = None if mask is None else score_bias(mask, latent.dtype)                 # (B, 1, 1, L)
        for block in cast(Iterable[PTDiTBlock], self.blocks):
            x = self.compute(block, x, text, modulation, windows, bias, options)        # (B, N, D)
        patches = self.final_layer(x, time)                                             # (B, N, patch^2 * out)
        return self.unpatchify(patches, windows.grid)[:, :self.config.channels, :height, :width]

    def check(self, latent: Tensor, timestep: Tensor, context: Tensor, mask: Tensor | None) -> None:
        """Refuse shapes that do not fit together, naming both sides of the mismatch."""
        config, batch = self.config, latent.shape[0]
        if latent.ndim != 4 or latent.shape[1] != config.channels or min(latent.shape[-2:]) < 2:
            raise ValueError(f"latent has shape {tuple(latent.shape)}; this PT-DiT takes (batch, {config.channels}, "
                             "height >= 2, width >= 2)")
        if context.ndim != 3 or context.shape[2] != config.caption_width:
            raise ValueError(f"text features have shape {tuple(context.shape)}; this PT-DiT takes (batch, tokens, "
                             f"{config.caption_width}). Use the text encoder that belongs to it.")
        if timestep.shape != (batch,) or context.shape[0] != batch:
            raise ValueError(f"batch sizes differ: latent {batch}, timestep {tuple(timestep.shape)}, "
                             f"text {context.shape[0]}")
        if mask is not None and (mask.shape != context.shape[:2] or mask.dtype != torch.bool):
            raise ValueError(f"mask is {tuple(mask.shape)} {mask.dtype}; expected {tuple(context.shape[:2])} bool")

    def embed_latent(self, latent: Tensor) -> tuple[Tensor, Windows]:
        """(B, channels, H, W) -> tokens with positions, window by window, (B, N, D), and how they are arranged."""
        side = self.config.window
        bottom, right = (-length % (side * self.config.patch) for length in latent.shape[-2:])
        padded = pad_border(latent, bottom, right)
        grid: TokenGrid = (padded.shape[-2] // self.config.patch, padded.shape[-1] // self.config.patch)
        tokens = self.x_embedder(padded) + self.positions.like(latent, grid)            # (B, N, D)
        bias = region_bias(grid, side, latent) if self.config.shifted else None         # (W, 1, n, n)
        return to_windows(tokens, grid, side), Windows(grid, bias)

    def compute(self, block: PTDiTBlock, *given: Any) -> Tensor:
        """The call that recomputation wraps."""
        if self.recompute and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(block, *given, use_reentrant=False))
        return block(*given)

    def unpatchify(self, patches: Tensor, grid: TokenGrid) -> Tensor:
        """(B, N, patch * patch * channels) in windows, channel fastest, -> (B, channels, h * patch, w * patch)."""
        p = self.config.patch
        rows = from_windows(patches, grid, self.config.window)
        return rearrange(rows, "b (h w) (p q c) -> b c (h p) (w q)", h=grid[0], p=p, q=p)


def pad_border(latent: Tensor, bottom: int, right: int) -> Tensor:
    """(B, C, H, W) -> (B, C, H + bottom, W + right), the border repeated."""
    return F.pad(latent, (0, right, 0, bottom), mode="replicate") if bottom or right else latent
