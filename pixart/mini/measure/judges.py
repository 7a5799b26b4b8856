"""What the measures need of a judge network."""
from typing import Protocol

from torch import Tensor


class PictureJudge(Protocol):
    """Reads pictures (B, 3, H, W) in 0..1."""

    def __call__(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """Logits (B, answers) of every attribute, in the order of `ATTRIBUTES`."""

    def features(self, pictures: Tensor) -> Tensor:
        """(B, F), what the answers are read from."""

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """Convolution maps, each (B, C, h, w)."""
