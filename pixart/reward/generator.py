"""From noise to image with gradients: a few-step sampler and the VAE, recomputed in pieces in the backward pass."""
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..generation.request import Request, check_captions
from ..generation.sample import Conditioned
from ..model.transformer import PixArtTransformer
from ..sampling.noise import ImageNoise
from ..sampling.samplers import FEW_STEP_SAMPLERS, SAMPLERS
from ..sampling.schedule import Noise
from ..text.encoded import Encoded

MOST_REWARD_STEPS = 8
# Parts of decoders that keep many activations, by the names of diffusers and of ComfyUI.
COSTLY = {"ResnetBlock2D", "ResnetBlock", "Attention", "AttnBlock", "AutoencoderTinyBlock", "Block", "Upsample2D",
          "Upsample"}


class Generator:
    """noise (B, C, h, w) float32, a row a prompt -> images (B, 3, height, width) in 0..1, differentiable.

    Later steps of a sampler that adds noise use that of the request's seeds, so only the first noise is free: with it
    `sample` generates the same image. `start` is the first noise of the seeds.
    """

    def __init__(self, model: PixArtTransformer, decode: Callable[[Tensor], Tensor], request: Request,
                 caption: Encoded, noise: Noise | None = None) -> None:
        """decode: latents as the transformer sees them -> images in 0..1, see `vae.decoder`. noise: draws in place of
        those of the request's seeds. ValueError as `check_differentiable`."""
        check_differentiable(request)
        check_captions(caption, request, model.config)
        self.model, self.decode, self.request, self.caption = model, decode, request, caption
        self.device = model.x_embedder.proj.weight.device
        sampler, count = SAMPLERS[request.sampler], len(request.prompts)
        draws = noise or ImageNoise([request.seed + i for i in range(count)],
                                    (model.config.channels, *request.latent_shape), self.device)
        self.start, *self.later = [draws() for _ in range(sampler.noises(request.steps))]

    def latents(self, noise: Tensor) -> Tensor:
        """Latents (B, C, h, w), scaled as the transformer sees them."""
        network = Conditioned(self.model, self.request, self.caption.context, self.caption.mask, None)
        waiting = iter([noise.to(self.device), *self.later])
        return SAMPLERS[self.request.sampler].run(network, lambda: next(waiting), self.request.steps, self.request.rule,
                                                  None)

    def __call__(self, noise: Tensor) -> Tensor:
        return self.decode(self.latents(noise))[..., :self.request.height, :self.request.width]


def check_differentiable(request: Request) -> None:
    """Refuse what has no gradient worth following, by name. Raises ValueError."""
    chosen = SAMPLERS[request.sampler]
    if chosen.guided or request.steps > MOST_REWARD_STEPS:
        found = f"sampler {request.sampler}" + ("" if chosen.guided else f" in {request.steps} steps")
        raise ValueError(f"{found} cannot be optimised through: it takes too many passes. Use "
                         f"{', '.join(FEW_STEP_SAMPLERS)} with at most {MOST_REWARD_STEPS} steps, and a model made "
                         "for few steps")


class Recomputed(nn.Module):
    """A module that is run again in the backward pass instead of keeping its activations."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *given: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.inner(*given, **named)
        return checkpoint(self.inner, *given, use_reentrant=False, **named)


@contextmanager
def recomputed(model: PixArtTransformer, vae: nn.Module) -> Iterator[None]:
    """Inside, blocks of the transformer and costly parts of the decoder are recomputed in the backward pass."""
    wrapped = [(parent, name, child) for parent in list(vae.modules()) for name, child in parent.named_children()
               if type(child).__name__ in COSTLY]
    before, model.recompute = model.recompute, True
    try:
        for parent, name, child in wrapped:
            setattr(parent, name, Recomputed(child))
        yield
    finally:
        model.recompute = before
        for parent, name, child in wrapped:
            setattr(parent, name, child)
