"""The noise schedule of the whole family: 1000 steps, betas linear from 1e-4 to 0.02.

This is not Stable Diffusion's schedule, whose betas are linear in their square roots.
"""
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

STEPS = 1000

# model(x (B, C, H, W), t (B,) float 0..999) -> eps (B, C, H, W)
Model = Callable[[Tensor, Tensor], Tensor]
# callback(step index, x before the step, x0 predicted in it); whatever it raises ends the sampling
Callback = Callable[[int, Tensor, Tensor], None]


@lru_cache(maxsize=1)
def betas() -> Tensor:
    """(1000,) float64."""
    with torch.inference_mode(False):
        return torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64)


@lru_cache(maxsize=1)
def alphas_cumprod() -> Tensor:
    """(1000,) float64: share of signal in the variance, 0.9999 at t = 0, 4.04e-5 at t = 999."""
    with torch.inference_mode(False):
        return torch.cumprod(1 - betas(), dim=0)


def at(values: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """values (1000,) at indices t (B,) -> (B, 1, 1, 1) in the dtype and on the device of `like`."""
    return values.to(t.device)[t.long()].to(like.device, like.dtype).view(-1, 1, 1, 1)


def add_noise(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = sqrt(a) x0 + sqrt(1 - a) noise; x0, noise (B, C, H, W), t (B,) integer."""
    a = alphas_cumprod()
    return at(a.sqrt(), t, x0) * x0 + at((1 - a).sqrt(), t, x0) * noise


def predicted_x0(x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """The clean latent that x at step t (B,) and its noise prediction imply."""
    a = alphas_cumprod()
    return (x - at((1 - a).sqrt(), t, x) * eps) / at(a.sqrt(), t, x)


def batch_of(t: float, x: Tensor) -> Tensor:
    """One timestep for every picture: (B,) float32 on x's device."""
    return torch.full((x.shape[0],), float(t), device=x.device)
