"""Part of the topic `caches`: the package cache-dit on diffusers beside our first-block method, equal steps computed.

Both compute the first block in every step, as cache-dit always does, and the others in the steps of a mask. Passes
follow each other without a sampler.
"""
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pixart.accelerate import SamplingJob
from pixart.accelerate.budget import solve
from pixart.accelerate.plan import CachePlan
from pixart.model.policy import Step
from pixart.model.transformer import PixArtTransformer

from ..instruments.networks import transformer
from ..instruments.notes import Notes
from ..instruments.peers import diffusers_network, diffusers_pass, published, shared_inputs
from ..instruments.setting import DTYPES, Setting, need
from ..instruments.timing import paired_ratio, turns
from .wish import Wish, config_for, pixels

TABLE = "cache-dit on diffusers beside ours: passes of a whole sampling, the same steps computed, in turns"


@torch.inference_mode()
def measure(wish: Wish, setting: Setting, notes: Notes) -> None:
    """Two rows a pass, as with guidance; the first budget."""
    need("diffusers")
    need("cache_dit")
    (side, name), steps = wish.main, wish.cached_steps
    config, here = config_for(side, setting), pixels(side, setting)
    model = transformer(config, DTYPES[name], setting.device)
    job = SamplingJob.of(config, steps, here, here, wish.tokens, guided=True)
    plan = solve("first-block", wish.budgets[0], job).plan
    computed = plan.computed.computed().all(2).all(1).tolist()
    plain, cached = (diffusers_network(config, published(model), DTYPES[name], setting.device) for _ in range(2))
    last = cached.transformer_blocks[-1]
    enable(cached, computed)
    inputs = shared_inputs(config, here // 8, 2, wish.tokens, DTYPES[name], setting)
    ran = calls(last, partial(theirs, cached, inputs, steps, computed))
    notes.holds("cache-dit computes the same steps", f"{steps} steps", ran == sum(computed), f"{ran} steps")
    runs = {"ours": partial(ours, model, inputs, steps, None), "diffusers": partial(theirs, plain, inputs, steps, None),
            "ours, first-block": partial(ours, model, inputs, steps, plan),
            "diffusers, cache-dit": partial(theirs, cached, inputs, steps, computed)}
    found = turns(runs, setting)
    for title, each in found.items():
        notes.row(TABLE, px=side, dtype=name, blocks=config.depth, steps=steps, how=title,
                  computed=sum(computed) if "," in title else steps, ms=statistics.median(each),
                  **{"times as fast as without": paired_ratio(found[title.split(",")[0]], each),
                     "ours / this": paired_ratio(found["ours, first-block"], each)})


def calls(module: torch.nn.Module, run: Callable[[], None]) -> int:
    """How often `run` calls the module."""
    ran: list[int] = []
    hook = module.register_forward_hook(lambda *_: ran.append(1))
    run()
    hook.remove()
    return len(ran)


def config_of(computed: list[bool]) -> Any:
    from cache_dit import DBCacheConfig
    return DBCacheConfig(Fn_compute_blocks=1, Bn_compute_blocks=0, max_warmup_steps=0,
                         num_inference_steps=len(computed), steps_computation_policy="static",
                         steps_computation_mask=[int(each) for each in computed])


def enable(network: Any, computed: list[bool]) -> None:
    import cache_dit
    cache_dit.enable_cache(network, cache_config=config_of(computed))


def theirs(network: Any, inputs: dict[str, Tensor], steps: int, computed: list[bool] | None) -> None:
    if computed is not None:
        import cache_dit
        cache_dit.refresh_context(network, cache_config=config_of(computed))
    for _ in range(steps):
        diffusers_pass(network, inputs)


def ours(model: PixArtTransformer, inputs: dict[str, Tensor], steps: int, plan: CachePlan | None) -> None:
    run, policies = object(), plan.make() if plan else ()
    for index in range(steps):
        step = Step(index=index, total=steps, timestep=999.0 * (1 - index / steps), lanes=(0, 1), run=run)
        model(**inputs, policies=policies, step=step)
