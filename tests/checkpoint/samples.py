"""Made-up weights in every published layout, tiny or with full shapes that take no memory."""
import math
from dataclasses import replace

import torch
from torch import Tensor

from pixart.checkpoint import expected_shapes, to_diffusers
from pixart.config import VARIANTS, PixArtConfig

TINY = PixArtConfig(depth=2, hidden=72, heads=1, caption_width=16, caption_tokens=120)


def reference(config: PixArtConfig = TINY, seed: int = 0, positions: bool = True) -> dict[str, Tensor]:
    """Random weights in reference names, with the stored position table of the official files."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in expected_shapes(config).items()}
    if positions:
        tensors["pos_embed"] = position_table(config)
    return tensors


def position_table(config: PixArtConfig) -> Tensor:
    """(1, base^2, D): column half first, sines before cosines, by the official formula."""
    base, quarter = config.base_size, config.hidden // 4
    omega = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    along = (torch.arange(base, dtype=torch.float64) / config.position_scale)[:, None] * omega
    half = torch.cat([along.sin(), along.cos()], dim=1)
    table = torch.cat([half.expand(base, base, -1), half[:, None].expand(base, base, -1)], dim=2)
    assert math.isclose(table[0, 1, 0].item(), math.sin(1 / config.position_scale), abs_tol=1e-12)
    return table.flatten(0, 1)[None].float()


def full(variant: str, diffusers: bool = False, **changes: object) -> dict[str, Tensor]:
    """A released model's names and shapes on the meta device; only the position table has numbers."""
    config = replace(VARIANTS[variant], **changes)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in expected_shapes(config).items()}
    if diffusers:
        return to_diffusers(tensors)
    return {**tensors, "pos_embed": position_table(config)}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Same names, same numbers, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
