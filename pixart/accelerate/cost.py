"""Work of a pass in multiply-accumulate operations (MACs), branch by branch.

The matrix products of all layers are counted, and with `attention` those of queries, keys and values too. Without them
the numbers are those of ECAD's files (arXiv 2506.15682), whose counter does not see into fused attention.
"""
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..config import PixArtConfig
from ..model.embedders import SINUSOID_WIDTH
from .schedule import BranchSchedule


@dataclass(frozen=True)
class Costs:
    """Costs of one row, an image with one prompt. tokens: of the image; text: of the caption, padding included."""

    config: PixArtConfig
    tokens: int
    text: int
    attention: bool = True

    @property
    def overhead(self) -> int:
        """MACs outside of the blocks: embedders, modulation, final layer."""
        c, width = self.config, self.config.hidden
        pixels = c.patch ** 2 * width
        total = self.tokens * pixels * (c.channels + c.out_channels) + 6 * width ** 2 + scalar(width)
        total += self.text * (c.caption_width * width + width ** 2)
        return total + (3 * scalar(width // 3) if c.micro_conditioning else 0)

    def branches(self, block: int) -> tuple[int, int, int]:
        """MACs of self-attention, cross-attention and MLP of a block."""
        square, width = self.config.hidden ** 2, self.config.hidden
        attn, cross = 4 * self.tokens * square, 2 * (self.tokens + self.text) * square
        if self.attention:
            attn += 2 * self.tokens * self.keys(block) * width
            cross += 2 * self.tokens * self.text * width
        return attn, cross, 8 * self.tokens * square

    def keys(self, block: int) -> int:
        """Keys of self-attention, fewer where the block compresses them."""
        compression = self.config.kv_compression
        return self.tokens // compression.factor ** 2 if compression and block in compression.layers else self.tokens

    def of(self, schedule: BranchSchedule, rows: Sequence[int]) -> int:
        """MACs of a sampling that computes what the schedule says; rows: how many rows each step has."""
        prices = torch.tensor([self.branches(block) for block in range(schedule.depth)])    # (depth, 3) int64
        blocks = (schedule.computed() * prices).sum((1, 2))                                 # (steps,)
        return int(((blocks + self.overhead) * torch.tensor(rows)).sum())

    def row(self) -> int:
        """MACs of one row through the whole network."""
        return self.overhead + sum(sum(self.branches(block)) for block in range(self.config.depth))


def macs_text(*macs: float) -> str:
    """Numbers of operations as text, in the unit of the largest: "44.4 of 85.1 MMACs"."""
    size, unit = next((size, unit) for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1, ""))
                      if max(macs) >= size or size == 1)
    return " of ".join(f"{each / size:.3g}" for each in macs) + f" {unit}MACs"


def scalar(width: int) -> int:
    """MACs of the embedding of one number, a timestep or a side: two layers on its sinusoid."""
    return SINUSOID_WIDTH * width + width ** 2
