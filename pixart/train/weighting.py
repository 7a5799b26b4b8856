"""How much the loss of an image counts at its timestep: weights with mean 1 over uniformly drawn timesteps.

SNR = alphas_cumprod / (1 - alphas_cumprod) falls from 10^4 at t = 0 to 4e-5 at t = 999. The error of the predicted
noise says less about the image the noisier it is; written as an error of v = sqrt(a) noise - sqrt(1 - a) x0 the same
prediction weighs 1 + 1/SNR (Salimans and Ho 2022, section 4), which looks where shapes form.
"""
import torch
from torch import Tensor

from ..sampling.schedule import ALPHAS_CUMPROD

WEIGHTINGS = ("none", "min-snr", "v")
GAMMA = 5.0            # of min-SNR, as in its paper


def check_weighting(weighting: str, cap: float) -> None:
    """Raise ValueError for what `timestep_weights` does not know."""
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting is {weighting!r}; use {', '.join(WEIGHTINGS)}")
    if not cap >= 1:
        raise ValueError(f"weighting_cap is {cap}; 1 + 1/SNR is never below 1, so it must be at least 1")


def timestep_weights(weighting: str, cap: float) -> Tensor:
    """(1000,) float64, mean 1. "v": min(1 + 1/SNR, cap). "min-snr": min(SNR, 5) / SNR (Hang et al. 2023)."""
    check_weighting(weighting, cap)
    a = torch.tensor(ALPHAS_CUMPROD, dtype=torch.float64)
    snr = a / (1 - a)
    weights = {"none": torch.ones_like(a), "min-snr": snr.clamp(max=GAMMA) / snr,
               "v": (1 + 1 / snr).clamp(max=cap)}[weighting]
    return weights / weights.mean()
