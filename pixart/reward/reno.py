"""ReNO with a pipeline: prompts in, better noise and its images out."""
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..device import memory_advice
from ..generation.pipeline import Pipeline, texts_of
from ..generation.request import Request, check_noise
from ..text.encoded import Encoded
from ..vae import decoder
from .generator import Generator, check_differentiable, recomputed
from .optimise import PUBLISHED_RECIPE, NoiseRecipe, OptimisedNoise, WatchIteration, optimise_noise
from .protocol import WeightedSum
from .search import SEARCHES, WAYS, search_noise

ADVICE = "generate a smaller image, take fewer rewards, put them into 16 bits, or use fewer steps"


def reno(pipe: Pipeline, prompts: str | Sequence[str] | Encoded, reward: WeightedSum,
         recipe: NoiseRecipe = PUBLISHED_RECIPE, *,
         steps: int | None = None, seed: int = 0, width: int | None = None, height: int | None = None,
         sampler: str = "auto", rule: str | None = None, noise: Tensor | None = None,
         watch: WatchIteration | None = None, by: str = "gradient") -> OptimisedNoise:
    """Optimise the noise of images that `pipe` would generate with the same arguments; see `optimise_noise`.

    by: "gradient", or without gradients and their memory "best-of-n" or "search", of which only `recipe.iterations`
    matters: so many new noises, or neighbours of the best (`pixart.reward.search`), drawn from the generator of `seed`.
    reward: on the pipeline's device. noise: (B, C, height / 8, width / 8) to begin with, by default that of the
    seeds. sampler, steps, rule: as in a call of the pipeline. `pipe(..., noise=found.noise)` generates the best again.
    Raises ValueError for a sampler that cannot be differentiated, such as that of a base model; FloatingPointError
    where no reward is finite, MemoryError with advice.
    """
    if by not in WAYS:
        raise ValueError(f"by is {by!r}; use {', '.join(WAYS)}")
    request = request_of(pipe, prompts, noise, steps=steps, seed=seed, width=width, height=height, sampler=sampler,
                         rule=rule)
    texts = request.prompts
    given = prompts if isinstance(prompts, Encoded) else pipe.encode(prompts)
    if pipe.t5 is not None:
        pipe.t5.make_room(pipe.keep_t5)
    vae: Any = pipe.vae
    with torch.inference_mode(False), recomputed(pipe.transformer.requires_grad_(False), vae):
        generate = Generator(pipe.transformer, decoder(vae, pipe.config.latent_scale), request, given)
        begin = generate.start if noise is None else noise.to(pipe.device)
        with memory_advice(pipe.device, "optimising noise", ADVICE):
            if by == "gradient":
                return optimise_noise(generate, reward, texts, begin, recipe, watch)
            propose = SEARCHES[by](torch.Generator().manual_seed(seed))
            propose(begin)          # what the seed gives first may be what the search begins with
            return search_noise(generate, reward, texts, begin, recipe.iterations, propose, watch)


def request_of(pipe: Pipeline, prompts: str | Sequence[str] | Encoded, noise: Tensor | None, *, steps: int | None,
               seed: int, width: int | None, height: int | None, sampler: str, rule: str | None) -> Request:
    """The request for the images of `reno`, whose arguments these are: as those of the pipeline, without guidance.

    Reads no weights. ValueError for a sampler that cannot be differentiated, and for noise of another shape.
    """
    wanted, side = pipe.wanted(sampler, steps, None, rule), pipe.config.resolution
    request = Request(texts_of(prompts), "", height or side, width or side, wanted.sampler, wanted.steps, 1.0,
                      wanted.rule, seed)
    check_differentiable(request)
    check_noise(noise, request, pipe.config)
    return request
