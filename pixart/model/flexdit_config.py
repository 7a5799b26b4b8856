"""The configuration of a FlexDiT: what each block does, and on how many tokens at which timestep.

FlexDiT, later called SparseDiT (arXiv 2412.06028): the first blocks only pool, most of the others work on a coarser
grid of tokens, which is finer the less noise there is. Its PixArt configuration was never published; the defaults are
those of the published DiT-XL at 512 px.
"""
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..config import PixArtConfig

TRAINED_TIMESTEPS = 1000        # T of the paper
Grid = tuple[int, int]  # rows and columns of tokens


@dataclass(frozen=True)
class Segments:
    """What each block of a PixArt becomes, in their order."""

    pooling: int = 2        # blocks whose self-attention is the mean of all values
    groups: int = 4         # times: pool to sparse tokens, merge, sparse blocks, recover, dense blocks
    sparse: int = 3         # blocks of a group on sparse tokens, between merge and recover
    dense: int = 1          # blocks of a group on all tokens, behind recover
    top: int = 2            # last blocks, on all tokens

    def __post_init__(self) -> None:
        if min(asdict(self).values()) < 0:
            raise ValueError(f"{self.text}; no number may be negative")

    @property
    def depth(self) -> int:
        return self.pooling + self.groups * (self.sparse + self.dense + 2) + self.top

    @property
    def roles(self) -> tuple[str, ...]:
        """Of each block: pooling, merge, sparse, recover or dense."""
        group = ("merge", *("sparse",) * self.sparse, "recover", *("dense",) * self.dense)
        return ("pooling",) * self.pooling + group * self.groups + ("dense",) * self.top

    @property
    def text(self) -> str:
        """As text for messages."""
        return (f"{self.pooling} pooling, {self.groups} x (merge, {self.sparse} sparse, recover, {self.dense} "
                f"dense), {self.top} dense")

    @classmethod
    def for_depth(cls, depth: int) -> "Segments":
        """As published for 28 blocks; else as many groups of its size as fit, between pooling and dense blocks.

        Raises ValueError for fewer than 8 blocks, which have no such layout: give one explicitly.
        """
        if depth < 8:
            raise ValueError(f"{depth} blocks are too few for the usual segments, which take 8; give pooling, groups, "
                             "sparse, dense and top, that sum up to them")
        pooling = 1 if depth < 16 else 2
        groups = (depth - pooling - 1) // 6
        return cls(pooling, groups, top=depth - pooling - 6 * groups)


@dataclass(frozen=True)
class Density:
    """The pruning rate r = 1 - M / N, M sparse tokens for N, over the timesteps t of a thousand."""

    r_min: float = 0.61     # in the first quarter of the timesteps, that of little noise
    r_max: float = 0.86     # at the last timestep
    pieces: int = 3         # constant pieces in place of the line between; 0: the line itself

    def __post_init__(self) -> None:
        if not 0 <= self.r_min <= self.r_max:
            raise ValueError(f"r_min is {self.r_min:g}, r_max {self.r_max:g}; expected 0 <= r_min <= r_max < 1")
        if not self.r_max < 1:
            raise ValueError(f"r_max is {self.r_max:g}, a density that leaves no token; it must be below 1, 0.86 as "
                             "published")
        if self.pieces < 0:
            raise ValueError(f"pieces is {self.pieces}; it must be 0 (a line) or more")

    @property
    def text(self) -> str:
        """As text for messages."""
        return f"{100 * (1 - self.r_max):.0f} to {100 * (1 - self.r_min):.0f} % of the tokens in sparse blocks"

    @property
    def starts(self) -> tuple[int, ...]:
        """First timestep of each range of constant density; with pieces 0, of the constant range and of the line."""
        if self.r_min == self.r_max:
            return (0,)
        quarter, pieces = TRAINED_TIMESTEPS / 4, max(self.pieces, 1)
        return (0, *(math.ceil(quarter + 3 * quarter * piece / pieces) for piece in range(pieces)))

    def rate(self, t: float) -> float:
        """r(t): r_min for t < T / 4, then a line to r_max at T, or `pieces` stairs that meet the line at their ends."""
        share = (4 * t - TRAINED_TIMESTEPS) / (3 * TRAINED_TIMESTEPS)
        if share < 0:
            return self.r_min
        if self.pieces:
            share = (min(int(share * self.pieces), self.pieces - 1) + 1) / self.pieces
        return self.r_min + share * (self.r_max - self.r_min)

    def grid(self, grid: Grid, t: float) -> Grid:
        """The grid of sparse tokens: both sides of `grid` times sqrt(1 - r(t)). ValueError where nothing is left."""
        share = math.sqrt(1 - self.rate(t))
        sparse = round(grid[0] * share), round(grid[1] * share)
        if min(sparse) < 1:
            raise ValueError(f"a density of {1 - self.rate(t):.2f} leaves no token of {grid[0]} x {grid[1]}; a side "
                             f"must have {math.floor(0.5 / share) + 1} tokens or more")
        return sparse


@dataclass(frozen=True)
class FlexDiTConfig(PixArtConfig):
    """A PixArt in segments. Raises ValueError if they do not sum to its depth, and for key/value compression."""

    segments: Segments = field(default_factory=Segments)
    density: Density = field(default_factory=Density)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.segments.depth != self.depth:
            raise ValueError(f"the segments have {self.segments.depth} blocks, the model {self.depth}: "
                             f"{self.segments.text}")
        if self.kv_compression is not None:
            raise ValueError("FlexDiT does not go with key/value compression: sparse tokens take its place; use a "
                             "model without")

    @classmethod
    def of(cls, config: PixArtConfig, segments: Segments | None = None,
           density: Density | None = None) -> "FlexDiTConfig":
        """A plain configuration in segments, by default those for its depth."""
        segments = segments or Segments.for_depth(config.depth)
        return cls(**plain(config), segments=segments, density=density or Density())


def plain(config: PixArtConfig) -> dict[str, Any]:
    """What every PixArt configuration has, by name."""
    return {entry.name: getattr(config, entry.name) for entry in fields(PixArtConfig)}
