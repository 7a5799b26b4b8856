"""The image that a ControlNet follows."""
import math
from dataclasses import dataclass, replace

from torch import Tensor

from ..sampling.schedule import STEPS


@dataclass(frozen=True)
class ControlImage:
    """An edge map for the image to follow, white lines on black, (1 or B, 1 or 3, H, W) in 0..1, with its strength.

    It is scaled and cropped to the image size. start, end: fractions of the timesteps between which it applies, 0 the
    noise, 1 the finished image. latent: the map as a scaled latent of the image size, (1 or B, C, h, w), if it is
    already known; otherwise the autoencoder encodes it.
    """

    edges: Tensor
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    latent: Tensor | None = None

    def __post_init__(self) -> None:
        if self.edges.ndim != 4 or self.edges.shape[1] not in (1, 3):
            raise ValueError(f"the edge map has shape {tuple(self.edges.shape)}; expected (images, 1 or 3, height, "
                             "width)")
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(f"control from {self.start} to {self.end}; expected 0 <= start <= end <= 1")
        if not math.isfinite(self.strength):
            raise ValueError(f"control strength is {self.strength}; it must be a finite number, 0 for none")

    def rows(self, rows: Tensor) -> "ControlImage":
        """That of the images numbered by `rows`; a single map is shared by all images."""
        latent = self.latent if self.latent is None or len(self.latent) == 1 else self.latent[rows]
        return replace(self, edges=self.edges if len(self.edges) == 1 else self.edges[rows], latent=latent)

    def in_force(self, timestep: float) -> bool:
        """Whether it steers the step at this timestep, 0..999."""
        return self.strength != 0 and self.start <= 1 - timestep / (STEPS - 1) <= self.end
