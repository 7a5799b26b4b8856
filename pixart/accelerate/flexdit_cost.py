"""Work of a FlexDiT's pass, counted as for a PixArt."""
import math
from dataclasses import dataclass

from ..model.flexdit_config import FlexDiTConfig, Grid
from .cost import Costs


@dataclass(frozen=True)
class FlexDiTCosts(Costs):
    """Costs of one row at a density. sparse: tokens of the sparse grid.

    Averaging and copying between the grids is not counted.
    """

    sparse: int = 0

    @classmethod
    def at(cls, config: FlexDiTConfig, grid: Grid, timestep: float, text: int,
           attention: bool = True) -> "FlexDiTCosts":
        """For an image of (h, w) tokens at a timestep."""
        return cls(config, math.prod(grid), text, attention, math.prod(config.density.grid(grid, timestep)))

    @property
    def roles(self) -> tuple[str, ...]:
        assert isinstance(self.config, FlexDiTConfig)
        return self.config.segments.roles

    def branches(self, block: int) -> tuple[int, int, int]:
        """MACs of self-attention (with W1 and W2 of a recover block), cross-attention and MLP of a block."""
        role, square = self.roles[block], self.config.hidden ** 2
        queries = self.sparse if role in ("merge", "sparse") else self.tokens
        keys = self.sparse if role in ("sparse", "recover") else self.tokens
        attn = 2 * (queries + keys) * square + (2 * queries * keys * self.config.hidden if self.attention else 0)
        if role == "pooling":
            attn = 2 * square               # one token
        if role == "recover":
            attn += (self.tokens + self.sparse) * square
        cross = 2 * (queries + self.text) * square
        cross += 2 * queries * self.text * self.config.hidden if self.attention else 0
        return attn, cross, 8 * queries * square
