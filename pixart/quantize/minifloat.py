"""Floating-point numbers of a few bits: a sign, an exponent, a fraction; no infinities, and zero is code 0.

Codes count the magnitudes upwards. Source: FP4DiT (arXiv 2503.15465), section 3, and its published code.
"""
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MiniFloat:
    """E2M1 has 2 bits of exponent, 1 of fraction. Levels are multiples of a power of two; callers scale them."""

    exponent: int
    fraction: int

    @property
    def name(self) -> str:
        return f"e{self.exponent}m{self.fraction}"

    @property
    def levels(self) -> int:
        """How many magnitudes there are, zero included."""
        return 1 << (self.exponent + self.fraction)

    @property
    def largest(self) -> float:
        """The largest magnitude."""
        return float(self.value(torch.tensor(self.levels - 1)))

    def value(self, codes: Tensor) -> Tensor:
        """Codes 0 .. levels - 1, whole numbers of any type -> magnitudes, float32."""
        codes = codes.long()
        exponent = (codes >> self.fraction).clamp(min=1)
        return torch.ldexp((codes - ((exponent - 1) << self.fraction)).float(), exponent - self.fraction)

    def signed_values(self, device: torch.device) -> Tensor:
        """What all codes stand for, (2 * levels,) float32: the magnitudes, then those with the sign bit above them."""
        magnitudes = self.value(torch.arange(self.levels, device=device))
        return torch.cat([magnitudes, -magnitudes])

    def below(self, magnitudes: Tensor) -> tuple[Tensor, Tensor]:
        """magnitudes float32 in 0 .. largest -> the code of the level at or below each, and the step to the next."""
        step, first = self._steps(magnitudes)
        return first + (magnitudes / step).floor().long(), step

    def nearest(self, magnitudes: Tensor) -> Tensor:
        """magnitudes float32 in 0 .. largest -> codes of the nearest levels; of two, the even multiple of the step."""
        step, first = self._steps(magnitudes)
        return first + (magnitudes / step).round().long()

    def rounded(self, magnitudes: Tensor) -> Tensor:
        """magnitudes float32 in 0 .. largest -> the nearest levels themselves."""
        step, _ = self._steps(magnitudes)
        return (magnitudes / step).round() * step

    def _steps(self, magnitudes: Tensor) -> tuple[Tensor, Tensor]:
        """The distance of levels around each magnitude, and the code that 0 would have at that distance."""
        exponent = (torch.frexp(magnitudes)[1] - 1).clamp(1, (1 << self.exponent) - 1)
        step = torch.ldexp(torch.ones_like(magnitudes), exponent - self.fraction)
        return step, (exponent.long() - 1) << self.fraction
