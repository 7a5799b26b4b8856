"""Ancestral sampling with the learned variance (Improved DDPM), on a respaced chain."""
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, repeat

import torch
from torch import Tensor

from .schedule import ALPHAS_CUMPROD, STEPS, Callback, Noise, Table, batch_of


@dataclass(frozen=True)
class Chain:
    """A shortened diffusion process of n steps: tables of n numbers, and `times`, the timesteps the model is given."""

    times: tuple[int, ...]
    x0_of_x: Table                      # x0 = x0_of_x x - x0_of_eps eps
    x0_of_eps: Table
    log_beta: Table
    posterior_log_variance: Table       # index 0 takes the value of index 1, as its own is minus infinity
    posterior_x0: Table                 # weight of x0 in the posterior mean
    posterior_x: Table                  # weight of x_t in it

    @classmethod
    def respaced(cls, steps: int = STEPS) -> "Chain":
        """Keep `steps` of the 1000 timesteps, evenly from 0 to 999, and derive the process between them."""
        if not 2 <= steps <= STEPS:
            raise ValueError(f"{steps} steps asked for; between 2 and {STEPS} are possible")
        places = accumulate(repeat((STEPS - 1) / (steps - 1), steps - 1), initial=0.0)     # summed up, as published
        return _chain(tuple(round(place) for place in places))

    def predicted_x0(self, x: Tensor, eps: Tensor, i: Tensor) -> Tensor:
        return self.x0_of_x.at(i, x) * x - self.x0_of_eps.at(i, x) * eps

    def posterior_mean(self, x0: Tensor, x: Tensor, i: Tensor) -> Tensor:
        return self.posterior_x0.at(i, x) * x0 + self.posterior_x.at(i, x) * x

    def log_variance(self, logits: Tensor, i: Tensor) -> Tensor:
        """Variance logits (B, C, H, W), nominally -1..1, interpolate between the posterior variance and beta."""
        share = (logits + 1) / 2
        return share * self.log_beta.at(i, logits) + (1 - share) * self.posterior_log_variance.at(i, logits)


@lru_cache(maxsize=8)
def _chain(times: tuple[int, ...]) -> Chain:
    kept = [ALPHAS_CUMPROD[t] for t in times]
    before = [1.0, *kept[:-1]]
    betas = [1 - a / b for a, b in zip(kept, before)]
    variance = [beta * (1 - b) / (1 - a) for beta, a, b in zip(betas, kept, before)]
    return Chain(times, Table([1 / math.sqrt(a) for a in kept]), Table([math.sqrt(1 / a - 1) for a in kept]),
                 Table([math.log(beta) for beta in betas]), Table([math.log(v) for v in (variance[1], *variance[1:])]),
                 Table([beta * math.sqrt(b) / (1 - a) for beta, a, b in zip(betas, kept, before)]),
                 Table([(1 - b) * math.sqrt(1 - beta) / (1 - a) for beta, a, b in zip(betas, kept, before)]))


def iddpm_step(chain: Chain, output: Tensor, x: Tensor, i: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """One step: output (B, 2C, H, W) of the model for x at chain index i (B,) -> (next x, predicted x0)."""
    eps, logits = output.chunk(2, dim=1)
    x0 = chain.predicted_x0(x, eps, i)
    deviation = (0.5 * chain.log_variance(logits, i)).exp()
    keep = (i > 0).to(x.dtype).view(-1, 1, 1, 1)        # the last step adds no noise
    return chain.posterior_mean(x0, x, i) + keep * deviation * noise, x0


def iddpm(model: Callable[[Tensor, Tensor], Tensor], latent: Tensor, noise: Noise,
          steps: int = 100, callback: Callback | None = None) -> Tensor:
    """Unit Gaussian noise (B, C, H, W) -> clean latent; model(x, t) returns noise and variance logits (B, 2C, H, W)."""
    chain, x = Chain.respaced(steps), latent
    for step, index in enumerate(reversed(range(steps))):
        i = torch.full((x.shape[0],), index, device=x.device)
        after, x0 = iddpm_step(chain, model(x, batch_of(chain.times[index], x)), x, i, noise())
        if callback is not None:
            callback(step, x, x0)
        x = after
    return x
