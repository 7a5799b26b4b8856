"""The embedders of what enters the transformer: latent patches, timestep, image size, caption.

Shapes: B batch, D token width, N image tokens, L caption tokens, C caption width.
"""
import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Ops

SINUSOID_WIDTH = 256


def sinusoid(values: Tensor, width: int = SINUSOID_WIDTH) -> Tensor:
    """(B,) numbers -> (B, width) float32, cosines first. Always float32: bf16 would turn step 999 into 1000."""
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=values.device)
    angles = values.float()[:, None] * torch.exp(steps * (-math.log(10000.0) / half))   # (B, width / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)                              # (B, width)


class PatchEmbed(nn.Module):
    """Latent (B, channels, H, W) -> tokens (B, N, D), one patch x patch square each, row by row."""

    def __init__(self, channels: int, width: int, patch: int, ops: Ops, **factory: Any) -> None:
        super().__init__()
        self.proj = ops.Conv2d(channels, width, kernel_size=patch, stride=patch, **factory)

    def forward(self, latent: Tensor) -> Tensor:
        # Contiguous, or the whole residual stream would inherit the transposed layout and every block be slower.
        return rearrange(self.proj(latent), "b d h w -> b (h w) d").contiguous()        # (B, N, D)


class ScalarEmbed(nn.Module):
    """One number per row -> (B, width): sinusoid, Linear, SiLU, Linear."""

    def __init__(self, width: int, ops: Ops, **factory: Any) -> None:
        super().__init__()
        self.mlp = nn.Sequential(ops.Linear(SINUSOID_WIDTH, width, **factory), nn.SiLU(),
                                 ops.Linear(width, width, **factory))

    def forward(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        return self.mlp(sinusoid(values).to(dtype))                                     # (B, width)


class Mlp(nn.Module):
    """Linear, GELU with tanh approximation, Linear."""

    def __init__(self, width: int, inner: int, out: int, ops: Ops, **factory: Any) -> None:
        super().__init__()
        self.fc1 = ops.Linear(width, inner, **factory)
        self.fc2 = ops.Linear(inner, out, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))                        # (..., out)


class CaptionEmbed(nn.Module):
    """Text encoder output (B, L, C) -> (B, L, D).

    `y_embedding` (tokens, C) is the null caption of training (caption dropout). Files in diffusers layout do not carry
    it; then it is zero.
    """

    def __init__(self, width: int, hidden: int, tokens: int, ops: Ops, **factory: Any) -> None:
        super().__init__()
        self.y_proj = Mlp(width, hidden, hidden, ops, **factory)
        self.register_buffer("y_embedding", torch.zeros(tokens, width, **factory))

    def forward(self, context: Tensor) -> Tensor:
        return self.y_proj(context)                                                     # (B, L, D)
