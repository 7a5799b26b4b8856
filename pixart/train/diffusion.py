"""The diffusion objective: noise prediction plus a variational bound that teaches the variance (IDDPM, eq. 14-16)."""
import math

import torch
from torch import Tensor

from ..sampling.chain import Chain
from ..sampling.schedule import add_noise


def kl_bits(mean_a: Tensor, log_a: Tensor, mean_b: Tensor, log_b: Tensor) -> Tensor:
    """KL divergence of Gaussians a || b given by mean and log variance, elementwise, in bits."""
    nats = 0.5 * (log_b - log_a - 1 + (log_a - log_b).exp() + (mean_a - mean_b) ** 2 * (-log_b).exp())
    return nats / math.log(2)


def normal_cdf(x: Tensor) -> Tensor:
    """Standard normal distribution function by the tanh approximation the official loss uses."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))


def discretised_bits(x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Negative log-likelihood of x0 +- 1/255 under a Gaussian, open-ended beyond +-0.999, elementwise, in bits."""
    precision = (-0.5 * log_variance).exp()
    upper = normal_cdf(precision * (x0 - mean + 1 / 255))
    lower = normal_cdf(precision * (x0 - mean - 1 / 255))
    mass = torch.where(x0 < -0.999, upper, torch.where(x0 > 0.999, 1 - lower, upper - lower))
    return -mass.clamp(min=1e-12).log() / math.log(2)


def variational_bound(output: Tensor, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """(B,) bits per element. Only the variance learns from it: the noise prediction enters detached."""
    chain = Chain.respaced()
    eps, logits = output.chunk(2, dim=1)
    mean = chain.posterior_mean(chain.predicted_x0(x, eps.detach(), t), x, t)
    log_variance = chain.log_variance(logits, t)
    true_mean = chain.posterior_mean(x0, x, t)
    true_log_variance = chain.posterior_log_variance.at(t, x)
    kl = kl_bits(true_mean, true_log_variance, mean, log_variance).flatten(1).mean(1)
    first = discretised_bits(x0, mean, log_variance).flatten(1).mean(1)
    return torch.where(t == 0, first, kl)


def diffusion_loss(output: Tensor, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Per-image loss (B,): mean squared error of the noise plus the variational bound.

    output (B, 2C, H, W) is the model's answer to add_noise(x0, noise, t), noise prediction then variance logits;
    x0, noise (B, C, H, W); t (B,) integer 0..999. All in one floating dtype, float32 or better.
    """
    eps = output.chunk(2, dim=1)[0]
    error = ((noise - eps) ** 2).flatten(1).mean(1)
    return error + variational_bound(output, x0, add_noise(x0, noise, t), t)
