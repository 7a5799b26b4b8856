"""Seeded noise in which each image owns its generator, so that an image does not depend on its batch."""
from collections.abc import Sequence

import torch
from torch import Tensor


class ImageNoise:
    """Draws unit Gaussian noise (B, *shape), row i always from the stream of seeds[i], on the CPU for any device.

    ahead: number of draws made and moved to the device together, at the first call and whenever they are used up, so
    that nothing is copied to the device while sampling.
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...], device: torch.device | str = "cpu",
                 dtype: torch.dtype = torch.float32, ahead: int = 1) -> None:
        check_seeds(seeds)
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.shape, self.device, self.dtype, self.ahead = shape, device, dtype, max(1, ahead)
        self._waiting: list[Tensor] = []

    def __call__(self) -> Tensor:
        if not self._waiting:
            draws = torch.stack([self._draw() for _ in range(self.ahead)])
            self._waiting = list(draws.to(self.device, self.dtype).unbind())
        return self._waiting.pop(0)

    def _draw(self) -> Tensor:
        return torch.stack([torch.randn(self.shape, generator=generator) for generator in self.generators])


def check_seeds(seeds: Sequence[int]) -> None:
    """Raises ValueError for a seed that torch does not take."""
    if wrong := [seed for seed in seeds if not -2 ** 63 <= seed < 2 ** 64]:
        raise ValueError(f"seed is {wrong[0]}; it must fit into 64 bits, and so must those that follow it")
