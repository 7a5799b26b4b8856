"""The noise schedule of the whole family: 1000 steps, betas linear from 1e-4 to 0.02.

This is not Stable Diffusion's schedule, whose betas are linear in their square roots.

Its numbers are Python floats, which are float64. A tensor gets them rounded to its own dtype, on the CPU: some devices
(Apple GPUs) have no float64 at all.
"""
import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import mul
from typing import overload

import torch
from torch import Tensor

STEPS = 1000
BETA_FIRST, BETA_LAST = 1e-4, 0.02

# model(x (B, C, H, W), t (B,) float 0..999) -> eps (B, C, H, W)
Model = Callable[[Tensor, Tensor], Tensor]
# noise() -> unit Gaussian noise (B, C, H, W), new at every call
Noise = Callable[[], Tensor]
# callback(step index, x before the step, x0 predicted in it); whatever it raises ends the sampling
Callback = Callable[[int, Tensor, Tensor], None]

BETAS: tuple[float, ...] = tuple(BETA_FIRST + i * (BETA_LAST - BETA_FIRST) / (STEPS - 1) for i in range(STEPS))
# Share of signal in the variance: 0.9999 at t = 0, 4.04e-5 at t = 999.
ALPHAS_CUMPROD: tuple[float, ...] = tuple(accumulate((1 - beta for beta in BETAS), mul))


def check_denoise(denoise: float) -> None:
    """Raises ValueError for a denoise (image to image) that is not above 0, or above 1."""
    if not 0 < denoise <= 1:
        raise ValueError(f"denoise is {denoise}; it must lie above 0 and at most at 1")


class Table:
    """One number for every timestep, exact for one timestep, rounded to the dtype of a tensor for a batch of them.

    The rounded numbers stay on the device they were asked for, so that only the first look-up copies anything there.
    """

    def __init__(self, values: Sequence[float]) -> None:
        self.values = tuple(values)
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __getitem__(self, t: int) -> float:
        return self.values[t]

    @overload
    def at(self, t: int, like: Tensor) -> float: ...

    @overload
    def at(self, t: Tensor, like: Tensor) -> Tensor: ...

    def at(self, t: int | Tensor, like: Tensor) -> float | Tensor:
        """The number at t; for whole timesteps t (B,), on the device of `like`: (B, 1, 1, 1) in the dtype of `like`."""
        if not isinstance(t, Tensor):
            return self.values[t]
        return self._on(like)[t.long()].view(-1, 1, 1, 1)

    def _on(self, like: Tensor) -> Tensor:
        key = (like.device, like.dtype)
        if key in self._copies:
            return self._copies[key]
        with torch.inference_mode(False):       # a kept tensor must stay usable in training
            copy = torch.tensor(self.values, dtype=like.dtype, device="cpu").to(like.device)
        if type(copy) is Tensor:                # not a fake tensor, made while something is traced
            self._copies[key] = copy
        return copy


# x_t = SIGNAL x0 + NOISE noise
SIGNAL = Table([math.sqrt(a) for a in ALPHAS_CUMPROD])
NOISE = Table([math.sqrt(1 - a) for a in ALPHAS_CUMPROD])


def add_noise(x0: Tensor, noise: Tensor, t: int | Tensor) -> Tensor:
    """x_t of x0 and noise (B, C, H, W); t is one timestep for all, or whole timesteps (B,) on their device."""
    return SIGNAL.at(t, x0) * x0 + NOISE.at(t, x0) * noise


def predicted_x0(x: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
    """The clean latent that x at step t and its noise prediction imply; t as in `add_noise`."""
    return (x - NOISE.at(t, x) * eps) / SIGNAL.at(t, x)


def batch_of(t: float, x: Tensor) -> Tensor:
    """One timestep for every image: (B,) float32 on x's device, made there."""
    return torch.full((x.shape[0],), float(t), device=x.device)
