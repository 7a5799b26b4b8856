"""The respaced chain of Improved DDPM (arXiv 2102.09672): posterior means and learned variances, for training."""
import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, repeat

from torch import Tensor

from .schedule import ALPHAS_CUMPROD, STEPS, Table


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
