"""One-step sampling of the distribution-matching distilled model (PixArt-alpha DMD, 512 px)."""
from torch import Tensor

from .schedule import Callback, Model, batch_of, predicted_x0

TIMESTEP = 400      # the generator was trained at this step only; at 999 it gives noise


def dmd(model: Model, noise: Tensor, callback: Callback | None = None) -> Tensor:
    """Unit Gaussian noise (B, C, H, W) -> clean latent, unclipped. The noise enters unscaled, as if it were x_400."""
    x0 = predicted_x0(noise, model(noise, batch_of(TIMESTEP, noise)), TIMESTEP)
    if callback is not None:
        callback(0, noise, x0)
    return x0
