"""What the metrics need from a judge network."""
from typing import Protocol

from torch import Tensor


class ImageJudge(Protocol):
    """Reads images (B, 3, H, W) in 0..1."""

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits (B, answers) of every attribute, in the order of `ATTRIBUTES`."""

    def features(self, images: Tensor) -> Tensor:
        """(B, F), the features that the answers are read from."""

    def maps(self, images: Tensor) -> list[Tensor]:
        """Convolution maps, each (B, C, h, w)."""
