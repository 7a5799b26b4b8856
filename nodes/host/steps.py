"""How a MODEL should be sampled, as the parts that the host's own sampling nodes take."""
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...pixart.mini import is_mini
from ...pixart.sampling.dmd import TIMESTEP as DMD_TIMESTEP
from ...pixart.sampling.dpm_solver import nodes
from ...pixart.sampling.preset import Preset, by_name, preset, preset_from_header
from ...pixart.sampling.tdm import tdm_timesteps
from .node_text import show_text
from .sampling import PureNoise, lcm_sampler, lcm_schedule, require_pixart, sigmas_at, with_schedule

logger = logging.getLogger(__name__)

ATTACHMENT = "pixart_sampling"       # where a MODEL keeps what its files said
Said = tuple[Path, Mapping[str, str]]


class SamplerParts(NamedTuple):
    """What SamplerCustom takes, and the numbers beside it."""

    model: Any
    sampler: Any
    sigmas: Tensor
    preset: Preset


def attach(model: Any, path: Path, metadata: Mapping[str, str]) -> Any:
    """Attach to a MODEL what a file, its checkpoint or a LoRA on it, says about sampling; returns the same MODEL."""
    said = preset_from_header(metadata, path) or by_name(path, usual_guidance(model))
    if said is not None:
        model.set_attachments(ATTACHMENT, said)
    return model


def usual_guidance(model: Any) -> float:
    """Scale that a teacher of this kind is usually sampled with."""
    config = getattr(model.model.model_config, "pixart", None)
    return 2.5 if config is not None and is_mini(config) else 4.5


def preset_of(model: Any) -> Preset | None:
    """What the files of a MODEL said; None where they said nothing."""
    return model.attachments.get(ATTACHMENT)


def usual_sampling(model: Any) -> str:
    """How a MODEL should be sampled, for display; "" where its files and their names say nothing."""
    said = preset_of(model)
    return "" if said is None else f"{said.method}: {said.steps} step{'s' * (said.steps > 1)}, cfg {said.guidance:g}"


def notice_method(model: Any, sampler: str) -> None:
    """Tell the user when a MODEL is sampled with another sampler than it was made for.

    Not for a base model under a LoRA, which may have made a student of it: stock loaders do not pass on its name.
    """
    said = preset_of(model)
    if said is not None and said.method == "teacher" and model.patches:
        return
    notice = said.mismatch(sampler) if said is not None else None
    if notice is not None:
        logger.warning(notice)
        show_text(f"{notice}. Use PixArt Steps, which sets what fits.")


def chosen_preset(model: Any, method: str, steps: int, cfg: float) -> Preset:
    """The preset of a method, or ("auto") what the MODEL's files said; steps and cfg 0 for the preset's own."""
    from dataclasses import replace
    found = preset_of(model) if method == "auto" else None
    if found is None:
        found = preset("teacher" if method == "auto" else method, usual_guidance(model))
        if method == "auto":
            found = replace(found, source="its files say nothing, so it is taken for a teacher; choose the method")
    elif (sampler := found.sampler) == "dmd" and steps > 1:
        raise ValueError(f"{steps} steps asked of a one-step model ({sampler}); leave steps at 0")
    return replace(found.with_steps(steps or None), guidance=cfg or found.guidance)


def make_parts(model: Any, method: str, steps: int, cfg: float, denoise: float) -> SamplerParts:
    """Everything to sample a MODEL with. Raises ValueError for what the method cannot do."""
    require_pixart(model)
    wanted = chosen_preset(model, method, steps, cfg)
    if denoise != 1 and wanted.sampler == "dmd":
        raise ValueError("one-step DMD starts from pure noise; use another model for image to image (denoise "
                         "below 1)")
    if wanted.sampler == "lcm":
        patched, sigmas = lcm_schedule(model, wanted.steps, wanted.rule, denoise)
        return SamplerParts(patched, lcm_sampler(), sigmas, wanted)
    if wanted.sampler == "dmd":
        patched, schedule = with_schedule(model, PureNoise)
        return SamplerParts(patched, lcm_sampler(), sigmas_at(schedule, [DMD_TIMESTEP]), wanted)
    from comfy.samplers import sampler_object
    name = "euler" if wanted.sampler in ("tdm", "ddim") else "dpmpp_2m"
    return SamplerParts(model, sampler_object(name), plain_sigmas(model, wanted, denoise), wanted)


def plain_sigmas(model: Any, wanted: Preset, denoise: float) -> Tensor:
    """SIGMAS of a deterministic sampler; below 1, denoise keeps the last of its steps, one at least."""
    if denoise == 0:
        return torch.zeros(0)
    if wanted.sampler == "tdm":
        times = tdm_timesteps(wanted.steps, wanted.rule)
    else:
        times = [int(node.time) for node in nodes(wanted.steps, "diffusers")[:-1]]
    kept = max(1, round(denoise * len(times)))
    schedule = model.get_model_object("model_sampling")
    if max(times) >= len(schedule.sigmas):
        raise ValueError(f"the schedule of this MODEL has {len(schedule.sigmas)} timesteps, {wanted.sampler} needs all "
                         "1000. Take ModelSamplingDiscrete out of the workflow, or choose the method lcm.")
    return sigmas_at(schedule, times[-kept:])
