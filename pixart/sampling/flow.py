"""Rectified flow: straight paths from noise to image, integrated in Euler steps.

A latent is x = (1 - s) x0 + s noise, with s the share of noise, 1 at the start; the model is told 1000 s and predicts
the velocity x0 - noise. Source: Liu et al. 2022 (arXiv 2209.03003); the shift of s with the image's size as in Stable
Diffusion 3 (arXiv 2403.03206, section 5.3.2).
"""
import math
from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor

from .schedule import Callback, Model, batch_of

FLOW_SCALE = 1000            # a model's timestep is the share of noise times this
FLOW_STEPS, FLOW_GUIDANCE = 30, 4.0       # of the published PT-DiT
Share = TypeVar("Share", float, Tensor)


def flow_shift_of(height: int, width: int, side: int) -> float:
    """Shift of the noise levels for an image of height x width pixels, relative to side x side, where it is 1 (none).

    Larger images need more noise to lose their shapes. It is the ratio of the sides, as in the published sampler.
    """
    return math.sqrt(height * width) / side


def shift_share(share: Share, shift: float) -> Share:
    """A share of noise 0..1, moved towards 1 by a shift above 1; 0 and 1 stay."""
    return shift * share / (1 + (shift - 1) * share)


def flow_shares(steps: int = FLOW_STEPS, shift: float = 1.0) -> list[float]:
    """The steps + 1 shares of noise to pass, from 1 to 0. ValueError for impossible numbers."""
    if steps < 1 or shift <= 0:
        raise ValueError(f"{steps} flow steps with a shift of {shift}; at least 1 step and a shift above 0 are needed")
    return [shift_share(1 - step / steps, shift) for step in range(steps)] + [0.0]


def euler_flow(model: Model, noise: Tensor, shares: Sequence[float], callback: Callback | None = None) -> Tensor:
    """Unit Gaussian noise (B, C, H, W) -> clean latent. model(x, 1000 s (B,)) predicts the velocity, guided if wanted.

    shares: noise levels to visit, as `flow_shares` gives them; callback(step, x, x0) as for the other samplers.
    """
    x = noise
    for step, (here, there) in enumerate(zip(shares, shares[1:])):
        velocity = model(x, batch_of(FLOW_SCALE * here, x))
        if callback is not None:
            callback(step, x, x + here * velocity)
        x = x + (here - there) * velocity
    return x


def flow_latent(x0: Tensor, noise: Tensor, share: Tensor) -> Tensor:
    """x0 and noise (B, C, H, W) at shares (B,) -> (B, C, H, W)."""
    share = share.to(x0.dtype).view(-1, 1, 1, 1)
    return (1 - share) * x0 + share * noise
