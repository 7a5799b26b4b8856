"""Policies on a MODEL of the host: made anew for every sampling, gone when it ends."""
import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...pixart.config import PixArtConfig
from ...pixart.model.flexdit import NO_POLICIES as REFUSED
from ...pixart.model.policy import Policy
from .policy_run import RUN, PolicyRun
from .transformer import HostFlexDiT, HostTransformer, network_in


@dataclass(frozen=True)
class Sampling:
    """What is about to be sampled, as policies may want to know it."""

    config: PixArtConfig
    steps: int
    images: int
    sides: tuple[int, int]          # of the latent, height and width
    text: int                       # tokens of the longest prompt
    guided: bool                    # with a negative prompt


MakePolicies = Callable[[Sampling], Sequence[Policy]]


def with_policies(model: Any, make_policies: MakePolicies) -> Any:
    """A clone of a MODEL (ModelPatcher) whose transformer asks these policies.

    make_policies is called once at the start of every sampling and told about it, so policies may keep what they like:
    it is released at the end, after an interruption or an error too. Called again on the result, the earlier policies
    are asked first. Raises ValueError for a MODEL that is not one of Load PixArt.
    """
    from comfy.patcher_extension import WrappersMP
    network = network_in(model.model)
    if isinstance(network, HostFlexDiT):
        raise ValueError(REFUSED)
    if network is None:
        raise ValueError(f"this MODEL is a {type(model.model).__name__}, not a PixArt of Load PixArt; load a PixArt "
                         "file with Load PixArt")
    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, RUN, sampling_with_policies(make_policies))
    for place, wrapper in ((WrappersMP.PREPARE_SAMPLING, leave_room), (WrappersMP.APPLY_MODEL, ask_policies),
                           (WrappersMP.CALC_COND_BATCH, leave_guidance_out)):
        if not patched.get_wrappers(place, RUN):
            patched.add_wrapper_with_key(place, RUN, wrapper)
    return patched


def sampling_with_policies(make_policies: MakePolicies) -> Callable[..., Any]:
    """A wrapper around a whole sampling that puts the policies into its options, and takes them out again."""
    def sample(executor: Any, noise: Any, latent: Any, sampler: Any, sigmas: Any, *args: Any, **kwargs: Any) -> Any:
        guider = executor.class_obj
        options = guider.model_options.setdefault("transformer_options", {})    # the copy of this sampling
        outer = options.get(RUN)
        earlier = outer.policies if outer is not None and outer.guider is guider else ()
        schedule = guider.model_patcher.get_model_object("model_sampling")
        made = make_policies(describe_sampling(guider, noise, sigmas)) if len(sigmas) > 1 else ()
        run = PolicyRun([*earlier, *made], noise.shape[0], schedule, guider,
                        guider.model_options.get("torch_compile_kwargs"))
        options[RUN] = run
        try:
            return executor(noise, latent, sampler, sigmas, *args, **kwargs)
        finally:
            run.end()
            options.pop(RUN) if outer is None else options.update({RUN: outer})
    return sample


def describe_sampling(guider: Any, noise: Any, sigmas: Any) -> Sampling:
    """From the host's guider and the arguments of its sampling."""
    network = network_in(guider.model_patcher.model)
    assert network is not None
    prompts = [cond for conds in guider.conds.values() for cond in conds]
    text = max((cond["cross_attn"].shape[1] for cond in prompts if cond.get("cross_attn") is not None), default=1)
    guided = bool(guider.conds.get("negative")) and not math.isclose(getattr(guider, "cfg", 1.0), 1.0)
    return Sampling(network.config, len(sigmas) - 1, noise.shape[0], tuple(noise.shape[-2:]), text, guided)


def leave_guidance_out(executor: Any, model: Any, conds: list, x: Any, sigmas: Any, options: Mapping) -> list:
    """A wrapper around all prompts of a step: from where policies want it, only the positive ones are computed.

    Their predictions stand for those of the negative ones too, so that guidance has no effect at any scale.
    """
    run = options.get("transformer_options", {}).get(RUN)
    asked = run is not None and len(conds) == 2 and conds[0] is not None and conds[1] is not None
    if not asked or run.guides(sigmas, options["transformer_options"]):
        return executor(model, conds, x, sigmas, options)
    run.unguided += len(x) * len(conds[1])
    positive = executor(model, [conds[0], None], x, sigmas, options)[0]
    return [positive, positive]


def leave_room(executor: Any, model: Any, noise_shape: Sequence[int], conds: Mapping, *args: Any,
               **kwargs: Any) -> Any:
    """A wrapper around the loading before a sampling: what policies will keep counts as memory that it needs."""
    run = ((kwargs.get("model_options") or {}).get("transformer_options") or {}).get(RUN)
    with room_for(model.model, run, noise_shape, conds):
        return executor(model, noise_shape, conds, *args, **kwargs)


@contextlib.contextmanager
def room_for(model: Any, run: PolicyRun | None, noise_shape: Sequence[int], conds: Mapping) -> Iterator[None]:
    network = network_in(model)
    if run is None or network is None:
        yield
        return
    lanes = noise_shape[0] * sum(len(prompts) for prompts in conds.values())
    dtype = model.manual_cast_dtype or model.get_dtype()
    model.bytes_to_keep = lanes * lane_bytes(network, run.policies, noise_shape[-2:], dtype.itemsize)
    try:
        yield
    finally:
        model.bytes_to_keep = 0


def lane_bytes(network: HostTransformer, policies: Sequence[Policy], sides: Sequence[int], itemsize: int) -> int:
    """Bytes that the policies keep for one row of a latent with these sides."""
    config = network.config
    tokens = math.prod(-(-side // config.patch) for side in sides)
    return sum(policy.kept(config.depth) for policy in policies) * tokens * config.hidden * itemsize


def ask_policies(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """A wrapper around every pass that tells the transformer to look for policies.

    By an argument of its own: hosts leave transformer_options out of the guards of a compiled graph, so a model
    compiled without policies would go on without them.
    """
    return executor(*args, **{**kwargs, "policies": True})
