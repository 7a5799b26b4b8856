"""Reward fine-tuning: a network learns to make what rewards score high, by gradients through few-step sampling.

As LongAlign's trainer does it (Liu et al. 2024, section 4 and luping-liu/LongAlign): images are sampled from noise, the
input of every pass is cut off from the gradient, and some passes alone, evenly spaced from a random first one, get any.
"""
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..reward.protocol import WeightedSum
from ..sampling.samplers import SAMPLERS
from ..sampling.schedule import Model
from ..vae import decoder
from .caption_list import CaptionList
from .data import Batch
from .objectives import draw_noise


@dataclass(frozen=True)
class RewardAscent:
    """Minus the mean reward of images generated with the network, without guidance.

    relevance only enters the fingerprint of a training; the caller reweights `reward`.
    """

    data: CaptionList
    reward: WeightedSum
    vae: nn.Module
    latent_scale: float
    sampler: str = "lcm"
    steps: int = 4
    rule: str = "official"
    gradient_steps: int = 2
    relevance: float = 1.0
    common: str = "captions"

    def __call__(self, model: nn.Module, average: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        chosen = SAMPLERS[self.sampler]
        noises = [draw_noise(batch, generator) for _ in range(chosen.noises(self.steps))]
        taught = taught_passes(self.steps, self.gradient_steps, generator)
        waiting = iter(noises)
        latents = chosen.run(some_passes(model, batch.conditions(), taught), lambda: next(waiting), self.steps,
                             self.rule, None)
        images = decoder(self.vae, self.latent_scale)(latents)        # type: ignore[arg-type]
        texts = getattr(batch, "texts", ())
        return -self.reward(images[..., :self.data.height, :self.data.width], texts).mean()


def taught_passes(steps: int, count: int, generator: torch.Generator) -> set[int]:
    """`count` of the passes 0 .. steps - 1, evenly spaced from a random first one, so that each comes up."""
    stride = steps // count
    firsts = steps - stride * (count - 1)
    own = plain_generator(generator)
    first = int(torch.randint(firsts, (1,), generator=own, device=own.device))
    return set(range(first, first + stride * count, stride))


def plain_generator(generator: torch.Generator) -> torch.Generator:
    """One of the same seed for what all images of a step share."""
    beside = torch.Generator(generator.device)
    beside.manual_seed(generator.initial_seed() ^ 0x5DEECE66D)
    return beside


def some_passes(model: nn.Module, conditions: dict[str, Tensor], taught: set[int]) -> Model:
    """The network as a sampler calls it, with a gradient in the passes of these numbers and never through its input."""
    numbers = iter(range(1000))

    def call(x: Tensor, t: Tensor) -> Tensor:
        learns = next(numbers) in taught and torch.is_grad_enabled()
        if learns:      # else autocast of older torch uses 16-bit copies made in a pass without a gradient, which
            torch.clear_autocast_cache()        # have none either (pytorch issue 65766)
        with torch.set_grad_enabled(learns):
            found: Any = model(x.detach(), t, **conditions)
            return found.float()
    return call
