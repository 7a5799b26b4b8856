"""The table of samplers: what the pipeline, the command line, the nodes and the trainers offer."""
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .dmd import TIMESTEP, dmd
from .dpm_solver import DPM_RULES, dpm_solver_pp, last_nodes
from .lcm import LCM_RULES, lcm, lcm_timesteps
from .schedule import Callback, Model, Noise
from .tdm import TDM_RULES, tdm, tdm_timesteps

FROM_NOISE_ALONE = ("one-step DMD starts from pure noise and cannot work on an image; use another sampler, such as lcm "
                    "with a model made for it, for image to image")


class TimesOf(Protocol):
    """(steps, rule, denoise) -> the timesteps the model is called at, in order. ValueError for impossible numbers.

    denoise above 0, at most 1: below 1 they begin at a lower noise, for image to image.
    """

    def __call__(self, steps: int, rule: str, denoise: float = 1.0) -> list[float]: ...


class RunSampler(Protocol):
    """(model, noise, steps, rule, callback, denoise) -> clean latent (B, C, H, W).

    The first noise() is where it starts: unit noise, or with denoise below 1 a latent noised to the first of the times.
    """

    def __call__(self, model: Model, noise: Noise, steps: int, rule: str, callback: Callback | None,
                 denoise: float = 1.0) -> Tensor: ...


@dataclass(frozen=True)
class Sampler:
    """A way from noise to a clean latent, and its options."""

    name: str                               # by which it is chosen
    title: str                              # for display
    steps: int                              # by default
    guided: bool                            # takes classifier-free guidance and a negative prompt
    rules: tuple[str, ...]                  # published timestep rules to choose from; none: there is only one
    times: TimesOf
    run: RunSampler
    noises: Callable[[int], int] = lambda steps: 1
    """noises(steps): how often noise() is called."""
    takes_start_image: bool = True          # whether image to image and inpainting can use it


def _lcm_times(steps: int, rule: str, denoise: float = 1.0) -> list[float]:
    return [float(t) for t in lcm_timesteps(steps, rule, denoise)]


def _run_lcm(model: Model, noise: Noise, steps: int, rule: str, callback: Callback | None,
             denoise: float = 1.0) -> Tensor:
    return lcm(model, noise(), lcm_timesteps(steps, rule, denoise), noise, callback)


def _dpm_times(steps: int, rule: str, denoise: float = 1.0) -> list[float]:
    return [node.time for node in last_nodes(steps, rule, denoise)[:-1]]


def _run_dpm(model: Model, noise: Noise, steps: int, rule: str, callback: Callback | None,
             denoise: float = 1.0) -> Tensor:
    return dpm_solver_pp(model, noise(), steps, rule, callback, denoise=denoise)


def _run_ddim(model: Model, noise: Noise, steps: int, rule: str, callback: Callback | None,
              denoise: float = 1.0) -> Tensor:
    return dpm_solver_pp(model, noise(), steps, rule, callback, second_order=False, denoise=denoise)


def _dmd_times(steps: int, rule: str, denoise: float = 1.0) -> list[float]:
    if steps != 1:
        raise ValueError(f"the dmd sampler makes exactly 1 step, not {steps}")
    if denoise != 1:
        raise ValueError(FROM_NOISE_ALONE)
    return [float(TIMESTEP)]


def _run_dmd(model: Model, noise: Noise, steps: int, rule: str, callback: Callback | None,
             denoise: float = 1.0) -> Tensor:
    _dmd_times(steps, rule, denoise)
    return dmd(model, noise(), callback)


def _tdm_times(steps: int, rule: str, denoise: float = 1.0) -> list[float]:
    return [float(t) for t in tdm_timesteps(steps, rule, denoise)]


def _run_tdm(model: Model, noise: Noise, steps: int, rule: str, callback: Callback | None,
             denoise: float = 1.0) -> Tensor:
    return tdm(model, noise(), tdm_timesteps(steps, rule, denoise), callback)


SAMPLERS: dict[str, Sampler] = {sampler.name: sampler for sampler in (
    Sampler("lcm", "latent consistency model, 1 to 8 steps", 4, False, LCM_RULES, _lcm_times, _run_lcm,
            noises=lambda steps: steps),
    Sampler("dpm", "DPM-Solver++ (2M), about 20 steps", 20, True, DPM_RULES, _dpm_times, _run_dpm),
    Sampler("ddim", "DDIM, first order; for feedback (ILF), 10 steps", 10, True, DPM_RULES, _dpm_times, _run_ddim),
    Sampler("dmd", "distribution matching distillation, one step", 1, False, (), _dmd_times, _run_dmd,
            takes_start_image=False),
    Sampler("tdm", "trajectory distribution matching, 4 steps", 4, False, TDM_RULES, _tdm_times, _run_tdm),
)}
FEW_STEP_SAMPLERS = tuple(each.name for each in SAMPLERS.values() if not each.guided)     # of distilled models
FEW_STEP_RULES = tuple(dict.fromkeys(rule for name in FEW_STEP_SAMPLERS for rule in SAMPLERS[name].rules))


def sampler(name: str) -> Sampler:
    """The sampler of this name. Raises ValueError that names all of them."""
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}; use {', '.join(SAMPLERS)}")
    return SAMPLERS[name]
