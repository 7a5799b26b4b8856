"""Latent consistency distillation (PixArt-delta section 3, algorithm 1): student, target and loss of one step."""
from collections.abc import Callable

import torch
from torch import Tensor

from ..sampling.consistency import consistency
from ..sampling.lcm import GRID_SIZE
from ..sampling.schedule import STEPS, Model, add_noise, predicted_x0

STRIDE = STEPS // GRID_SIZE


def interval(index: Tensor) -> tuple[Tensor, Tensor]:
    """Grid index (B,) 0..49 -> timesteps (start, end) of one DDIM step: 19 -> 0, 39 -> 19, ..., 999 -> 979."""
    start = STRIDE * (index + 1) - 1
    return start, (start - STRIDE).clamp(min=0)


def teacher_step(x: Tensor, cond: Tensor, uncond: Tensor, start: Tensor, end: Tensor,
                 guidance: float | Tensor) -> Tensor:
    """Where the guided teacher says x at `start` came from at `end`.

    cond and uncond (B, C, H, W) are its noise predictions. guidance w extrapolates from the conditional prediction,
    cond + w (cond - uncond): w = 4.5 is what other samplers call a scale of 5.5. It may be (B, 1, 1, 1), one an image.
    The step is DDIM's, deterministic: predicted noise goes back onto the predicted clean latent.
    """
    eps = cond + guidance * (cond - uncond)
    x0_cond, x0_uncond = predicted_x0(x, cond, start), predicted_x0(x, uncond, start)
    return add_noise(x0_cond + guidance * (x0_cond - x0_uncond), eps, end)


def pseudo_huber(a: Tensor, b: Tensor, c: float = 0.001) -> Tensor:
    """Scalar: mean of sqrt((a - b)^2 + c^2) - c."""
    return (((a - b) ** 2 + c ** 2).sqrt() - c).mean()


def consistency_loss(student: Model, average: Model, teacher: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
                     x0: Tensor, noise: Tensor, index: Tensor, guidance: float | Tensor = 4.5,
                     huber_c: float = 0.001) -> Tensor:
    """Scalar loss of one distillation step.

    student and average (its exponential moving average) map (x, t) to noise (B, C, H, W) with the caption; teacher
    maps it to (conditional, unconditional) noise. x0 and noise (B, C, H, W), index (B,) drawn from 0..49.
    """
    start, end = interval(index)
    x = add_noise(x0, noise, start)
    prediction = consistency(x, student(x, start.float()), start)
    with torch.no_grad():
        earlier = teacher_step(x, *teacher(x, start.float()), start, end, guidance)
        target = consistency(earlier, average(earlier, end.float()), end)
    return pseudo_huber(prediction, target, huber_c)
