"""Seeded noise in which each picture owns its generator, so that a picture does not depend on its batch."""
from collections.abc import Sequence

import torch
from torch import Tensor


class PictureNoise:
    """Draws unit Gaussian noise (B, *shape), row i always from the stream of seeds[i], on the CPU for any device."""

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...], device: torch.device | str = "cpu",
                 dtype: torch.dtype = torch.float32) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.shape, self.device, self.dtype = shape, device, dtype

    def __call__(self) -> Tensor:
        rows = [torch.randn(self.shape, generator=generator) for generator in self.generators]
        return torch.stack(rows).to(self.device, self.dtype)
