"""The consistency function f(x, t) of latent consistency models (PixArt-delta section 3, LCM section 3)."""
import math

from torch import Tensor

from .schedule import STEPS, Table, predicted_x0

SIGMA_DATA = 0.5
TIMESTEP_SCALING = 10.0


def c_skip(t: int) -> float:
    return SIGMA_DATA ** 2 / ((t * TIMESTEP_SCALING) ** 2 + SIGMA_DATA ** 2)


def c_out(t: int) -> float:
    return t * TIMESTEP_SCALING / math.sqrt((t * TIMESTEP_SCALING) ** 2 + SIGMA_DATA ** 2)


SKIP = Table([c_skip(t) for t in range(STEPS)])
OUT = Table([c_out(t) for t in range(STEPS)])


def boundary(t: int | Tensor, like: Tensor) -> tuple[float | Tensor, float | Tensor]:
    """c_skip and c_out at t: f is the identity at t = 0 and almost pure x0 elsewhere.

    Numbers for one timestep; (B, 1, 1, 1) each, like `like`, for whole timesteps t (B,) on its device.
    """
    return SKIP.at(t, like), OUT.at(t, like)


def consistency(x: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
    """f(x, t) = c_skip x + c_out x0(x, eps, t); x, eps (B, C, H, W); t as in `add_noise`."""
    skip, out = boundary(t, x)
    return skip * x + out * predicted_x0(x, eps, t)
