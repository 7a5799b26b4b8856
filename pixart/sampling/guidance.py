"""Classifier-free guidance as one batched pass."""
import torch
from torch import Tensor

from .schedule import Model


def guided(model: Model, scale: float) -> Model:
    """eps = uncond + scale (cond - uncond), both halves in one pass.

    `model` takes a doubled batch (2B, C, H, W), unconditional half first, and returns its noise. At scale 1 pass
    the conditional model itself instead: this function would do twice the work for the same result.
    """
    def eps(x: Tensor, t: Tensor) -> Tensor:
        uncond, cond = model(torch.cat([x, x]), torch.cat([t, t])).chunk(2)
        return uncond + scale * (cond - uncond)
    return eps
