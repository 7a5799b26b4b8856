"""Reuse of work from step to step on a MODEL of the host: set when a sampling begins, reported when it ends."""
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...pixart.accelerate.choice import CacheChoice
from ...pixart.accelerate.cost import macs_text
from ...pixart.accelerate.plan import CachePlan, SamplingJob
from ...pixart.accelerate.pooled_values import PooledValues
from ...pixart.accelerate.tally import Tally, TallyBranches
from ...pixart.model.policy import Policy
from .node_text import node_at_work, show_text
from .policies import Sampling, with_policies
from .policy_run import RUN
from .transformer import network_in

logger = logging.getLogger(__name__)
CACHE_KEY = "pixart_cache"      # of this file's wrapper on a MODEL
CALLBACK = 4                    # place of the callback among the arguments of the host's sampling, behind the noise


class Cache:
    """The settings of one node, and what they did in the current sampling."""

    def __init__(self, choice: CacheChoice, vae: Any = None, pooled_blocks: int = 0) -> None:
        self.choice, self.vae, self.node = choice, vae, node_at_work()
        self.pooled_blocks = pooled_blocks
        self.plan: CachePlan | None = None
        self.job: SamplingJob | None = None
        self.line, self.tally = "", Tally()

    def policies(self, sampling: Sampling) -> Sequence[Policy]:
        """For a sampling that begins, with a tally behind them."""
        tokens = math.prod(math.ceil(side / sampling.config.patch) for side in sampling.sides)
        self.job = SamplingJob(sampling.config, sampling.steps, tokens, sampling.text, sampling.guided)
        self.plan, self.line = self.choice.plan(self.job)
        pooling = [PooledValues(sampling.config, self.pooled_blocks)] if self.pooled_blocks else []
        self.tally = TallyBranches() if self.plan.by_branch or pooling else Tally()
        self.say(self.line)
        return [*self.plan.make(), *pooling, self.tally]

    def say(self, text: str) -> None:
        """On the node and in the log."""
        logger.info("PixArt Cache: %s", text)
        show_text(text, self.node)

    def report(self, unguided: int, seconds: float) -> str:
        """What the sampling did, counted, in a few lines."""
        job, tally = self.job, self.tally
        assert job is not None and self.plan is not None
        costs, depth = job.costs(), job.config.depth
        done, whole = tally.macs(costs), costs.row() * (tally.rows + unguided)
        lines = [self.line, f"{tally.branches(depth):,} of {3 * depth * (tally.rows + unguided):,} branches computed"
                 + (f", {unguided} passes for negative prompts left out" if unguided else ""),
                 f"{macs_text(done, whole)}, {whole / done:.2f}x less work, {seconds:.2f} s"]
        return "\n".join(lines)


def with_cache(model: Any, choice: CacheChoice, vae: Any = None, pooled_blocks: int = 0) -> Any:
    """A clone of a MODEL that reuses work as chosen, whatever samples it.

    vae: sample a second time without reuse, and say how far the two images are from each other. pooled_blocks:
    first blocks whose self-attention is the mean of values. Raises ValueError for a MODEL that is not of Load PixArt,
    and for more of these blocks than it has.
    """
    from comfy.patcher_extension import WrappersMP
    network = network_in(model.model)
    if network is not None and pooled_blocks:
        PooledValues(network.config, pooled_blocks)     # so that errors come before any work
    cache = Cache(choice, vae, pooled_blocks)
    patched = with_policies(model, cache.policies)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, CACHE_KEY, sampling_with_cache(cache))
    return patched


def sampling_with_cache(cache: Cache) -> Callable[..., Any]:
    """A wrapper inside that of the policies: their run is there, and goes on being there until this returns."""
    def sample(executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Any:
        guider = executor.class_obj
        run = guider.model_options.get("transformer_options", {}).get(RUN)
        if cache.plan is None or run is None or cache.tally not in run.policies:
            return executor(noise, *args, **kwargs)
        again = Again(guider)
        started = time.perf_counter()
        result = executor(noise, *args, **kwargs)
        text = cache.report(run.unguided, time.perf_counter() - started)
        if cache.vae is not None:
            started = time.perf_counter()
            plain = again.without_policies(executor, noise, *args, **kwargs)
            seconds = time.perf_counter() - started
            found = psnr_of_latents(cache.vae, result, plain)
            text += f"\nwithout reuse {seconds:.2f} s, PSNR of the images {found:.1f} dB"
        cache.say(text)
        return result
    return sample


class Again:
    """Runs a sampling of the host a second time as if it were the first."""

    def __init__(self, guider: Any) -> None:
        """Remembers prompts and random state, which a sampling changes."""
        self.guider, self.state = guider, torch.get_rng_state()
        self.conds = copied_conds(guider.conds)

    def without_policies(self, executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What it gives without any reuse; progress is not shown twice."""
        options = self.guider.model_options["transformer_options"]
        run = options.pop(RUN)
        self.guider.conds = self.conds
        torch.set_rng_state(self.state)
        quiet = [None if place == CALLBACK else each for place, each in enumerate(args)]
        try:
            return executor(noise, *quiet, **{name: None if name == "callback" else each
                                              for name, each in kwargs.items()})
        finally:
            options[RUN] = run


def copied_conds(conds: dict[str, list]) -> dict[str, list]:
    return {name: [cond.copy() for cond in entries] for name, entries in conds.items()}


def psnr_of_latents(vae: Any, one: Tensor, other: Tensor) -> float:
    """PSNR of two LATENTs' images, in dB; infinite where they are equal."""
    images = [vae.decode(latents).float().clamp(0, 1).cpu() for latents in (one, other)]
    error = (images[0] - images[1]).square().mean().item()
    return math.inf if error == 0 else -10 * math.log10(error)
