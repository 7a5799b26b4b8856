"""One-step distillation by distribution matching (DMD, Yin et al. 2024, arXiv 2311.18828), as for PixArt-alpha.

The student turns noise into an image in one call at one timestep. Two things move it: the difference between what the
guided teacher and the fake score see in its noised images, and images that the teacher made from the same noise
(regression), which keep it from dropping modes. The fake score learns what the student generates. As in PixArt-Sigma's
code (train_scripts/train_pixart_dmd.py), whose regression decodes latents with a tiny VAE and compares them by LPIPS;
here it may, and by default compares the latents.
"""
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..sampling.dmd import TIMESTEP
from ..sampling.schedule import Model, add_noise, predicted_x0
from .data import Batch, TrainingData
from .draws import draw_rows, rows_of
from .trajectory import guided_x0, per_image
from .transfer import send

REGRESSION_ON = ("latents", "lpips", "judge")
FIRST, LAST = 1, 998         # timesteps of the noise in which teacher and fake score look at an image


def one_step(student: Model, noise: Tensor, timestep: int = TIMESTEP) -> Tensor:
    """The student's clean latent of unit Gaussian noise (B, C, H, W), as `pixart.sampling.dmd` samples it."""
    eps = student(noise, torch.full((len(noise),), float(timestep), device=noise.device))
    return predicted_x0(noise, eps, timestep)


def distribution_loss(x0: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """Scalar whose gradient moves x0 (B, C, H, W) by real - fake, over the mean distance of x0 to the teacher's latent.

    real, fake: clean latents that the guided teacher and the fake score see in the noised x0.
    """
    weight = 1 / (per_image((x0 - real).abs()).detach() + 1e-5)
    distance = (x0 - x0.detach()) + weight.view(-1, 1, 1, 1) * (fake - real).detach()
    return (distance ** 2).mean()


@dataclass(frozen=True)
class OneStep:
    """What both players of DMD minimise.

    data: captions, and with regression above 0 pairs of noise and the teacher's latents. teacher: frozen. guidance:
    ordinary scale. timestep: that the student is called at. regression: weight of that loss; 0: distribution matching
    alone, which needs no pairs. share: of the images that it sees. distance: of two batches of latents, (B,); None:
    their mean squared difference. regression_on: which it is, one of `REGRESSION_ON`, for a training's fingerprint.
    """

    data: TrainingData
    teacher: Callable[..., Tensor]
    channels: int = 4
    guidance: float = 3.0
    timestep: int = TIMESTEP
    regression: float = 0.25
    share: float = 0.5
    regression_on: str = "latents"
    distance: nn.Module | None = None

    order = ("student", "fake")

    def turn(self, student: nn.Module, batch: Batch, generator: torch.Generator) -> "OneStepTurn":
        """What a step draws at random; the student's images are made when it moves."""
        return OneStepTurn(self, batch, generator)

    def distances(self, made: Tensor, wanted: Tensor) -> Tensor:
        """How far latents (B, C, h, w) are from those of the pairs, (B,)."""
        return per_image((made - wanted) ** 2) if self.distance is None else self.distance(made, wanted)


class OneStepTurn:
    """One batch of a step, and the losses of both players on it. The student's comes first: it makes the images."""

    def __init__(self, game: OneStep, batch: Batch, generator: torch.Generator) -> None:
        """Raises ValueError for data without noise where the regression needs it."""
        if game.regression and batch.noise is None:
            raise ValueError("this data has no noise beside its latents, which the regression of dmd needs; make pairs "
                             "with `python -m pixart pairs`, or set method.regression to 0")
        self.game, self.batch = game, batch
        count, device = len(batch.latents), batch.latents.device
        rows, total = rows_of(generator, count)
        share = max(1, round(game.share * total))       # of the step's images, however it is split
        self.compared = min(max(share - (rows.start or 0), 0), count)
        self.weight = game.regression * total / (share * count)         # a step is the mean of its parts
        shape = (count, game.channels, *batch.latents.shape[2:])
        drawn = {name: (send(draw_rows(partial(torch.randint, FIRST, LAST + 1), (count,), generator), device),
                        send(draw_rows(torch.randn, shape, generator), device)) for name in ("student", "fake")}
        self.drawn = drawn
        self.noise = batch.noise if batch.noise is not None else send(draw_rows(torch.randn, shape, generator), device)
        self.made: Tensor | None = None

    def loss(self, player: str, student: nn.Module, fake: nn.Module) -> Tensor:
        """Scalar loss of "student" or "fake", for the network of that name."""
        return self.student_loss(student, fake) if player == "student" else self.fake_loss(fake)

    def student_loss(self, student: nn.Module, fake: nn.Module) -> Tensor:
        game, (t, noise) = self.game, self.drawn["student"]
        x0 = one_step(self._with_caption(student), self.noise, game.timestep)
        self.made = x0.detach()
        with torch.no_grad():
            seen = add_noise(self.made, noise, t)
            real = guided_x0(game.teacher, seen, t, self.batch, game.data, game.guidance)
            guess = predicted_x0(seen, self._with_caption(fake)(seen, t.float()), t)
        loss = distribution_loss(x0, real, guess)
        if game.regression and self.compared:
            distances = game.distances(x0[:self.compared], self.batch.latents[:self.compared])
            loss = loss + self.weight * distances.sum()
        return loss

    def fake_loss(self, fake: nn.Module) -> Tensor:
        """Noise prediction on the images that the student made before it moved."""
        if self.made is None:
            raise RuntimeError("the student moves first")
        t, noise = self.drawn["fake"]
        return ((self._with_caption(fake)(add_noise(self.made, noise, t), t.float()) - noise) ** 2).mean()

    def _with_caption(self, network: nn.Module) -> Model:
        return lambda x, t: network(x, t, **self.batch.conditions()).float()
