"""Trajectory distribution matching (TDM, Luo et al. 2025, arXiv 2503.06674): a few-step student learned from captions.

The student runs its own deterministic trajectory. On each of its parts the distribution of its predictions, noised
again, is compared with the teacher's: the guided teacher and a second network, which learns what the student makes
(the fake score), say in which direction the two differ. As in the published trainer (Luo-Yihong/TDM), with two
differences: an image's noise always continues its own part of the trajectory (there the student's update takes the
part of the fake score's), and float32 where that rounds to 16 bits.
"""
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..sampling.schedule import NOISE, SIGNAL, Model, add_noise, predicted_x0
from ..sampling.tdm import grid
from .data import Batch, TrainingData
from .draws import draw_rows
from .transfer import send

LOWEST, MARGIN = 20, 10      # a part is noised no lower than to LOWEST, and to MARGIN timesteps below its start
SNR_CAP = 5.0                # of the fake score's loss, min-SNR
HUBER = ("element", "vector", "none")
ELEMENT_C, VECTOR_C = 1e-3, 0.00054      # the trainer's, and the paper's before its sqrt(d)


class TrajectoryPart(NamedTuple):
    """One part of the trajectory for each image: whole timesteps (B,), and the noise (B, C, H, W) of `noised`."""

    number: Tensor            # 0 the noisiest .. steps - 1, on the CPU
    start: Tensor             # where the student is called
    end: Tensor               # where its step leads
    noised: Tensor            # between end and start: where the two networks look
    noise: Tensor


def draw_part(like: Tensor, steps: int, total: int, separate: bool, generator: torch.Generator) -> TrajectoryPart:
    """A part for each image of `like` (B, C, H, W), evenly drawn.

    separate: look only inside the part itself, so that the parts have nothing in common; else anywhere above its end.
    """
    count, device = len(like), like.device
    number = draw_rows(partial(torch.randint, steps), (count,), generator)
    ends = torch.tensor([*grid(steps, total), -1], device=number.device)
    start, end = ends[number], (ends[number + 1] + 1)
    low, high = end.clamp(min=LOWEST), start - MARGIN if separate else torch.full_like(start, total - MARGIN)
    share = draw_rows(torch.rand, (count,), generator)
    noised = (low + (share * (high - low)).long()).clamp(max=high - 1)
    noise = send(draw_rows(torch.randn, tuple(like.shape), generator), device)
    return TrajectoryPart(number.cpu(), send(start, device), send(end, device), send(noised, device), noise)


class Rollout(NamedTuple):
    """What the student's own trajectory holds for two parts: x (B, C, H, W) at the start of each, and the noise
    prediction at the first of them."""

    x: Tensor
    eps: Tensor
    other_x: Tensor


@torch.no_grad()
def rollout(model: Callable[[Tensor, Tensor, Tensor], Tensor], noise: Tensor, timesteps: list[int], part: Tensor,
            other: Tensor) -> Rollout:
    """The trajectory of `noise` (B, C, H, W), each image only as far as part and other (B,), on the CPU, need it.

    model(x, t, rows) predicts the noise of the images `rows` of the batch. It is called in every step, so that all
    processes of a training call it equally often.
    """
    x, eps, other_x, at_part = noise.clone(), torch.zeros_like(noise), noise.clone(), noise.clone()
    for step, t in enumerate(timesteps):
        needed = ((part >= step) | (other > step)).nonzero()[:, 0]
        rows = send(needed if len(needed) else torch.zeros(1, dtype=torch.long), noise.device)
        here, there = (send(chosen == step, noise.device).view(-1, 1, 1, 1) for chosen in (part, other))
        at_part, other_x = torch.where(here, x, at_part), torch.where(there, x, other_x)
        predicted = torch.zeros_like(x)
        predicted[rows] = model(x[rows], torch.full((len(rows),), float(t), device=x.device), rows)
        eps = torch.where(here, predicted, eps)
        if step + 1 < len(timesteps):
            x[rows] = add_noise(predicted_x0(x[rows], predicted[rows], t), predicted[rows], timesteps[step + 1])
    return Rollout(at_part, eps, other_x)


def renoise(x: Tensor, noise: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """x (B, C, H, W) at timestep `here` (B,), diffused forward to the noisier `there` with fresh noise."""
    ratio, added = _forward(x, here, there)
    return ratio * x + added * noise


def mixed_noise(eps: Tensor, noise: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """All the noise in `renoise`'s result, that of eps (B, C, H, W) at `here` and the fresh one, of unit variance if
    eps is."""
    ratio, added = _forward(eps, here, there)
    return (ratio * NOISE.at(here, eps) * eps + added * noise) / NOISE.at(there, eps)


def _forward(x: Tensor, here: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 1, 1, 1) each: what is left of x, and how much noise comes to it."""
    ratio = SIGNAL.at(there, x) / SIGNAL.at(here, x)
    return ratio, (NOISE.at(there, x) ** 2 - (ratio * NOISE.at(here, x)) ** 2).clamp(min=0).sqrt()


def importance(eps: Tensor, noise: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """(B,): how likely the noise that is really in an image is, relative to noise drawn afresh, both a pixel."""
    mixed = mixed_noise(eps, noise, here, there)
    return (0.5 * (per_image(noise ** 2) - per_image(mixed ** 2))).exp()


def per_image(values: Tensor) -> Tensor:
    """(B, C, H, W) -> mean of each image, (B,)."""
    return values.flatten(1).mean(1)


def fake_loss(fake: Model, x0: Tensor, x: Tensor, t: Tensor, weight: Tensor) -> Tensor:
    """Scalar: how well the fake score finds the student's x0 (B, C, H, W) in x at timestep t (B,). weight (B,)."""
    error = per_image((predicted_x0(x, fake(x, t.float()), t) - x0) ** 2)
    snr = (SIGNAL.at(t, x) / NOISE.at(t, x)).flatten() ** 2
    return (snr.clamp(max=SNR_CAP) * weight * error).mean()


def matching_loss(x0: Tensor, real: Tensor, fake: Tensor, huber: str = "element") -> Tensor:
    """Scalar whose gradient moves the student's x0 (B, C, H, W) by real - fake.

    real: the guided teacher's clean latent of the noised image; fake: the fake score's. Divided by the distance of x0
    to the teacher's, so that no timestep outweighs the others. huber: "element", as the published trainer has it;
    "vector", as the paper, over the root mean square of an image; "none", squares.
    """
    distance = (x0 - x0.detach()) - (real - fake).detach()       # in this order zero is exactly zero
    size = per_image((x0 - real).abs()).detach().clamp(min=1e-8)
    if huber == "element":
        losses = per_image((distance ** 2 + ELEMENT_C ** 2).sqrt() - ELEMENT_C)
    elif huber == "vector":
        losses = (per_image(distance ** 2) + VECTOR_C ** 2).sqrt() - VECTOR_C
    else:
        losses = per_image(distance ** 2)
    return (losses / size).mean()


@dataclass(frozen=True)
class Trajectory:
    """What both players of TDM minimise. Data-free: of the batches only captions and shapes are used.

    data: captions. teacher: frozen; where the student is adapters in its own teacher, a call that switches them off.
    channels: of the latents. guidance: the ordinary classifier-free scale, 1 for none. steps, total: of the student's
    grid. separate: see `draw_part`. importance: weigh the fake score's loss by the function of that name. huber: see
    `matching_loss`.
    """

    data: TrainingData
    teacher: Callable[..., Tensor]
    channels: int = 4
    guidance: float = 4.5
    steps: int = 4
    total: int = 900
    separate: bool = True
    importance: bool = True
    huber: str = "element"

    order = ("fake", "student")

    def turn(self, student: nn.Module, batch: Batch, generator: torch.Generator) -> "TrajectoryTurn":
        """Everything of a step that happens before one of the two players moves."""
        return TrajectoryTurn(self, student, batch, generator)

    def real(self, x: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """The guided teacher's clean latent of x (B, C, H, W) at t (B,)."""
        return guided_x0(self.teacher, x, t, batch, self.data, self.guidance)


@torch.no_grad()
def guided_x0(teacher: Callable[..., Tensor], x: Tensor, t: Tensor, batch: Batch, data: TrainingData,
              guidance: float) -> Tensor:
    """Clean latent that a teacher sees in x (B, C, H, W) at t (B,), with classifier-free guidance in one pass."""
    given = batch.conditions()
    if guidance == 1:
        return predicted_x0(x, teacher(x, t.float(), **given).float(), t)
    silent = data.without_caption(batch).conditions()
    both = {name: torch.cat([given[name], silent[name]]) for name in given}
    cond, uncond = teacher(torch.cat([x, x]), torch.cat([t, t]).float(), **both).float().chunk(2)
    return predicted_x0(x, uncond + guidance * (cond - uncond), t)


class TrajectoryTurn:
    """One batch of a step: the student's trajectory, and the losses of both players on it."""

    def __init__(self, game: Trajectory, student: nn.Module, batch: Batch, generator: torch.Generator) -> None:
        self.game, self.batch = game, batch
        count, _, height, width = batch.latents.shape
        noise = send(draw_rows(torch.randn, (count, game.channels, height, width), generator), batch.latents.device)
        self.parts = {name: draw_part(noise, game.steps, game.total, game.separate, generator)
                      for name in ("fake", "student")}
        self.rollout = rollout(partial(self._student_rows, student), noise, grid(game.steps, game.total),
                               self.parts["fake"].number, self.parts["student"].number)

    def _student_rows(self, student: nn.Module, x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        conditions: dict[str, Any] = {name: value[rows] for name, value in self.batch.conditions().items()}
        return student(x, t, **conditions).float()

    def loss(self, player: str, student: nn.Module, fake: nn.Module) -> Tensor:
        """Scalar loss of "fake" or "student", for the network of that name."""
        return self.fake_loss(fake) if player == "fake" else self.student_loss(student, fake)

    def fake_loss(self, fake: nn.Module) -> Tensor:
        part, made = self.parts["fake"], self.rollout
        x0 = predicted_x0(made.x, made.eps, part.start)
        x = renoise(add_noise(x0, made.eps, part.end), part.noise, part.end, part.noised)
        weight = torch.ones_like(part.noised, dtype=x0.dtype)
        if self.game.importance:
            weight = importance(made.eps, part.noise, part.end, part.noised)
        return fake_loss(self._with_caption(fake), x0, x, part.noised, weight)

    def student_loss(self, student: nn.Module, fake: nn.Module) -> Tensor:
        part, x = self.parts["student"], self.rollout.other_x
        eps = self._with_caption(student)(x, part.start.float())
        x0 = predicted_x0(x, eps, part.start)
        with torch.no_grad():
            seen = renoise(add_noise(x0, eps, part.end), part.noise, part.end, part.noised)
            real = self.game.real(seen, part.noised, self.batch)
            guess = predicted_x0(seen, self._with_caption(fake)(seen, part.noised.float()), part.noised)
        return matching_loss(x0, real, guess, self.game.huber)

    def _with_caption(self, network: nn.Module) -> Model:
        return lambda x, t: network(x, t, **self.batch.conditions()).float()
