"""The consistency function f(x, t) of latent consistency models (PixArt-delta section 3, LCM section 3)."""
from torch import Tensor

from .schedule import predicted_x0

SIGMA_DATA = 0.5
TIMESTEP_SCALING = 10.0


def boundary(t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """c_skip and c_out at t (B,), each (B, 1, 1, 1): f is the identity at t = 0 and almost pure x0 elsewhere."""
    scaled = t.double() * TIMESTEP_SCALING
    total = scaled ** 2 + SIGMA_DATA ** 2
    skip, out = SIGMA_DATA ** 2 / total, scaled / total.sqrt()
    return tuple(c.to(like.device, like.dtype).view(-1, 1, 1, 1) for c in (skip, out))


def consistency(x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """f(x, t) = c_skip x + c_out x0(x, eps, t); x, eps (B, C, H, W), t (B,) integer."""
    skip, out = boundary(t, x)
    return skip * x + out * predicted_x0(x, eps, t)
