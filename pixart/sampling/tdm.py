"""Few-step sampling of a student of trajectory distribution matching (TDM, Luo et al. 2025, arXiv 2503.06674).

Deterministic: DDIM over evenly spaced timesteps that end below 999, as in the published trainer for PixArt
(Luo-Yihong/TDM). Guidance is in the weights. In sigmas, sqrt((1 - a) / a), the same step is Euler's.
"""
from collections.abc import Sequence

from torch import Tensor

from .schedule import STEPS, Callback, Model, add_noise, batch_of, check_denoise, predicted_x0

# Timesteps that the trajectory covers: 900 by the published command, 800 by that program's own default.
TOTALS = {"official": 900, "tdm-800": 800}
TDM_RULES = tuple(TOTALS)


def tdm_timesteps(steps: int = 4, rule: str = "official", denoise: float = 1.0) -> list[int]:
    """Timesteps to visit, descending: 4 -> 899, 674, 449, 224; by the rule "tdm-800" 799, 599, 399, 199.

    denoise below 1 (image to image) keeps that share of them, the last ones, one at least: a student knows no others.
    """
    if rule not in TOTALS:
        raise ValueError(f"unknown TDM timestep rule {rule!r}; use {' or '.join(TDM_RULES)}")
    check_denoise(denoise)
    return grid(steps, TOTALS[rule])[-max(1, round(denoise * steps)):]


def grid(steps: int, total: int) -> list[int]:
    """Ends of `steps` equal parts of the first `total` timesteps, descending."""
    if not 1 <= steps <= total <= STEPS:
        raise ValueError(f"{steps} TDM steps over {total} timesteps asked for; expected 1 <= steps <= {STEPS}")
    return [total * i // steps - 1 for i in range(steps, 0, -1)]


def tdm(model: Model, noise: Tensor, timesteps: Sequence[int], callback: Callback | None = None) -> Tensor:
    """Unit Gaussian noise (B, C, H, W), taken unscaled as x at timesteps[0] -> clean latent, that of the last step.

    With timesteps of a denoise below 1, `noise` is a latent noised to the first of them.
    """
    x = noise
    for step, t in enumerate(timesteps):
        eps = model(x, batch_of(t, x))
        x0 = predicted_x0(x, eps, t)
        if callback is not None:
            callback(step, x, x0)
        if step + 1 < len(timesteps):
            x = add_noise(x0, eps, timesteps[step + 1])
    return x0
