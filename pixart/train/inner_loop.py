"""Distilling feedback (ILF): one step of a network with feedback is to go as far as several without it.

Both work in s = sigma / alpha, in which DDIM is a straight line: x / alpha changes by eps (s' - s). So several steps of
the teacher are one step along the mean of their noise predictions, each weighted by the length of its step, and that
mean is the target. It is linear, so it holds for every row by itself and for any guidance that mixes rows; guidance
only says where the teacher passes. As in progressive distillation (arXiv 2202.00512), for a frozen network.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..sampling.dpm_solver import Node, nodes
from ..sampling.schedule import Model
from .data import Batch, TrainingData
from .draws import draw_rows
from .objectives import draw_noise
from .transfer import send


@dataclass(frozen=True)
class InnerLoopDistillation:
    """The loss of `WithFeedback`: mean squared difference to the mean prediction of the base in `substeps` steps.

    steps: those an image is to take with feedback, at the official timesteps of DPM-Solver. guidance: the scale at
    which the teacher passes from one step to the next, 1 for none; the one that images will be generated with.
    """

    data: TrainingData
    steps: int = 10
    substeps: int = 2
    guidance: float = 4.5

    def __call__(self, model: nn.Module, average: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        count, device = len(batch.latents), batch.latents.device
        step = draw_rows(partial(torch.randint, self.steps), (count,), generator)
        path, at = self.path(step), partial(column, device=device)
        given, silent = batch.conditions(), self.data.without_caption(batch).conditions()
        both = {name: torch.cat([given[name], silent[name]]) for name in given}
        noise = draw_noise(batch, generator)
        x = at([node.alpha for node in path[0]]) * batch.latents + at([node.sigma for node in path[0]]) * noise
        base = average.base         # the average's, which is never wrapped; the frozen weights are the model's own

        def teacher(x: Tensor, t: Tensor) -> Tensor:
            return base(torch.cat([x, x]), torch.cat([t, t]), **both).float()
        with torch.no_grad():
            target = mean_prediction(teacher, x, path, self.guidance)
        t = send(torch.tensor([node.time for node in path[0]]), device)
        made = model(torch.cat([x, x]), torch.cat([t, t]), **both).float()
        return (made - target).square().mean()

    def path(self, step: Tensor) -> list[list[Node]]:
        """step (B,) 0 .. steps - 1 -> substeps + 1 lists of the rows' nodes."""
        every = nodes(self.steps * self.substeps)
        return [[every[self.substeps * index + part] for index in step.tolist()] for part in range(self.substeps + 1)]


def mean_prediction(teacher: Model, x: Tensor, path: Sequence[Sequence[Node]], guidance: float) -> Tensor:
    """x (B, C, H, W) at path[0] -> (2 B, C, H, W), the teacher's mean predictions on the way to path[-1].

    teacher(x, t) gives the predictions with caption, then those without.
    """
    total: Tensor = x.new_zeros(())
    at = partial(column, device=x.device)
    for here, there in zip(path, path[1:]):
        eps = teacher(x, at([node.time for node in here]).flatten())                    # (2 B, C, H, W)
        length = at([a.sigma / a.alpha - b.sigma / b.alpha for a, b in zip(here, there)])
        total = total + eps * length.repeat(2, 1, 1, 1)
        cond, uncond = eps.chunk(2)
        ratio = at([b.alpha / a.alpha for a, b in zip(here, there)])
        x = ratio * x - at([b.alpha for b in there]) * length * (uncond + guidance * (cond - uncond))
    whole = at([a.sigma / a.alpha - b.sigma / b.alpha for a, b in zip(path[0], path[-1])])
    return total / whole.repeat(2, 1, 1, 1)


def column(values: Sequence[float], device: torch.device) -> Tensor:
    """A number for each row, (B, 1, 1, 1)."""
    return send(torch.tensor(values, dtype=torch.float32), device).view(-1, 1, 1, 1)
