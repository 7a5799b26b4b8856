"""Ancestral sampling with the learned variance (Improved DDPM), on a respaced chain."""
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .schedule import STEPS, Callback, alphas_cumprod, at, batch_of


@dataclass(frozen=True)
class Chain:
    """A shortened diffusion process: all fields (steps,) float64, but `times`, the timesteps the model is given."""

    times: Tensor
    alphas_cumprod: Tensor
    betas: Tensor
    posterior_log_variance: Tensor      # index 0 takes the value of index 1, as its own is minus infinity
    posterior_x0: Tensor                # weight of x0 in the posterior mean
    posterior_x: Tensor                 # weight of x_t in it

    @classmethod
    def respaced(cls, steps: int = STEPS) -> "Chain":
        """Keep `steps` of the 1000 timesteps, evenly from 0 to 999, and derive the process between them."""
        if not 2 <= steps <= STEPS:
            raise ValueError(f"{steps} steps asked for; between 2 and {STEPS} are possible")
        times = torch.tensor([round(i * (STEPS - 1) / (steps - 1)) for i in range(steps)])
        kept = alphas_cumprod()[times]
        before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
        betas = 1 - kept / before
        variance = betas * (1 - before) / (1 - kept)
        return cls(times, kept, betas, torch.cat([variance[1:2], variance[1:]]).log(),
                   betas * before.sqrt() / (1 - kept), (1 - before) * (1 - betas).sqrt() / (1 - kept))

    def predicted_x0(self, x: Tensor, eps: Tensor, i: Tensor) -> Tensor:
        a = self.alphas_cumprod
        return at(a.rsqrt(), i, x) * x - at((1 / a - 1).sqrt(), i, x) * eps

    def posterior_mean(self, x0: Tensor, x: Tensor, i: Tensor) -> Tensor:
        return at(self.posterior_x0, i, x) * x0 + at(self.posterior_x, i, x) * x

    def log_variance(self, logits: Tensor, i: Tensor) -> Tensor:
        """Variance logits (B, C, H, W), nominally -1..1, interpolate between the posterior variance and beta."""
        share = (logits + 1) / 2
        return share * at(self.betas.log(), i, logits) + (1 - share) * at(self.posterior_log_variance, i, logits)


def iddpm_step(chain: Chain, output: Tensor, x: Tensor, i: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """One step: output (B, 2C, H, W) of the model for x at chain index i (B,) -> (next x, predicted x0)."""
    eps, logits = output.chunk(2, dim=1)
    x0 = chain.predicted_x0(x, eps, i)
    deviation = (0.5 * chain.log_variance(logits, i)).exp()
    keep = (i > 0).to(x.dtype).view(-1, 1, 1, 1)        # the last step adds no noise
    return chain.posterior_mean(x0, x, i) + keep * deviation * noise, x0


def iddpm(model: Callable[[Tensor, Tensor], Tensor], latent: Tensor, noise: Callable[[], Tensor],
          steps: int = 100, callback: Callback | None = None) -> Tensor:
    """Unit Gaussian noise (B, C, H, W) -> clean latent; model(x, t) returns noise and variance logits (B, 2C, H, W)."""
    chain, x = Chain.respaced(steps), latent
    for step, index in enumerate(reversed(range(steps))):
        i = torch.full((x.shape[0],), index, device=x.device)
        x, x0 = iddpm_step(chain, model(x, batch_of(chain.times[index].item(), x)), x, i, noise())
        if callback is not None:
            callback(step, x, x0)
    return x
