"""DPM-Solver++ (2M): multistep second-order sampling in data prediction (Lu et al. 2022, algorithm 2).

The official PixArt code and diffusers run the same update over different nodes, so their images differ:
"official" spaces fractional timesteps evenly and ends at t = 0; "diffusers" rounds them and ends at zero noise.
"""
import math
from typing import NamedTuple

from torch import Tensor

from .schedule import ALPHAS_CUMPROD, STEPS, Callback, Model, batch_of, check_denoise

DPM_RULES = ("official", "diffusers")


class Node(NamedTuple):
    """A point of the schedule: model time and the two scales of x = alpha x0 + sigma noise."""

    time: float
    alpha: float
    sigma: float

    @property
    def half_log_snr(self) -> float:
        return math.log(self.alpha) - math.log(self.sigma)


def node_at(time: float) -> Node:
    """Node at a fractional timestep; log alpha is interpolated linearly between its neighbours."""
    low = min(int(time), STEPS - 2)
    here, above = (0.5 * math.log(ALPHAS_CUMPROD[t]) for t in (low, low + 1))
    log_alpha = here + (time - low) * (above - here)
    return Node(time, math.exp(log_alpha), math.sqrt(-math.expm1(2 * log_alpha)))


def nodes(steps: int, rule: str = "official") -> list[Node]:
    """The steps + 1 nodes to pass, from noise to image."""
    if rule not in DPM_RULES:
        raise ValueError(f"unknown DPM-Solver rule {rule!r}; use {' or '.join(DPM_RULES)}")
    if not 1 <= steps < STEPS:
        raise ValueError(f"{steps} steps asked for; between 1 and {STEPS - 1} are possible")
    last = STEPS - 1
    if rule == "official":
        return [node_at(last * (1 - i / steps)) for i in range(steps + 1)]
    # Multiplied in the order of numpy's linspace, which decides how halves round: to 499, not 500, in 30 steps.
    times = [float(round(i * (last / steps))) for i in range(steps, 0, -1)]
    return [node_at(t) for t in times] + [Node(0.0, 1.0, 0.0)]


def last_nodes(steps: int, rule: str = "official", denoise: float = 1.0) -> list[Node]:
    """The steps + 1 last nodes of int(steps / denoise) steps, for image to image: always `steps` are computed.

    That is how ComfyUI's KSampler reads denoise. ValueError for impossible numbers.
    """
    check_denoise(denoise)
    if denoise == 1:
        return nodes(steps, rule)
    if (whole := int(steps / denoise)) >= STEPS:
        raise ValueError(f"{steps} steps at denoise {denoise:g} are the last of {whole}, and at most {STEPS - 1} are "
                         "possible; use fewer steps or a higher denoise")
    return nodes(whole, rule)[-(steps + 1):]


def dpm_step(x: Tensor, here: Node, there: Node, x0: Tensor, before: tuple[Node, Tensor] | None) -> Tensor:
    """From node `here` to `there`; second order where the previous node and its x0 are given."""
    if there.sigma == 0:
        return x0
    h = there.half_log_snr - here.half_log_snr
    if before is not None:
        node, previous = before
        ratio = (here.half_log_snr - node.half_log_snr) / h
        x0 = x0 + (x0 - previous) / (2 * ratio)
    return (there.sigma / here.sigma) * x - there.alpha * math.expm1(-h) * x0


def dpm_solver_pp(model: Model, noise: Tensor, steps: int = 20, rule: str = "official",
                  callback: Callback | None = None, second_order: bool = True, denoise: float = 1.0) -> Tensor:
    """Unit Gaussian noise (B, C, H, W) -> clean latent. Guidance belongs in `model`.

    With denoise below 1 `noise` is a latent noised to the first of `last_nodes`.
    With fewer than 10 official steps the last one is first order, for stability. Without `second_order` all are, which
    makes it DDIM.
    """
    path, x, before = last_nodes(steps, rule, denoise), noise, None
    for step, (here, there) in enumerate(zip(path, path[1:])):
        x0 = (x - here.sigma * model(x, batch_of(here.time, x))) / here.alpha
        if callback is not None:
            callback(step, x, x0)
        first_order = not second_order or (rule == "official" and steps < 10 and step == steps - 1)
        x, before = dpm_step(x, here, there, x0, None if first_order else before), (here, x0)
    return x
