"""What a trainer minimises, for a network and a batch of data: diffusion, with control, or latent consistency."""
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from ..sampling.lcm import GRID_SIZE
from ..sampling.schedule import Table, add_noise
from .consistency import consistency_loss
from .data import Batch, TrainingData
from .diffusion import diffusion_loss
from .draws import draw_rows
from .timesteps import Timesteps
from .transfer import send
from .weighting import check_weighting, timestep_weights

# objective(model in training, its moving average, batch, generator) -> scalar loss
Objective = Callable[[nn.Module, nn.Module, Batch, torch.Generator], Tensor]


def draw_noise(batch: Batch, generator: torch.Generator) -> Tensor:
    """Unit Gaussian noise like the batch's latents."""
    return send(draw_rows(torch.randn, batch.latents.shape, generator), batch.latents.device).to(batch.latents.dtype)


@dataclass(frozen=True)
class Noised:
    """Images of a step with noise: what a network is given, and what it is to predict.

    batch: some captions dropped; t (B,) int64; noise like the latents.
    """

    batch: Batch
    t: Tensor
    noise: Tensor

    @property
    def inputs(self) -> tuple[Tensor, Tensor]:
        """Noisy latents and timesteps, the first two arguments of a transformer."""
        return add_noise(self.batch.latents, self.noise, self.t), self.t.float()


@dataclass(frozen=True)
class Diffusion:
    """Noise prediction with learned variance; a share of captions is dropped so that guidance can be used.

    timesteps: from which the noise levels are drawn. weighting: how much the loss of an image, both its parts, counts
    at its timestep: "none", "min-snr" or "v", min(1 + 1/SNR, weighting_cap); see `timestep_weights`.
    """

    data: TrainingData
    caption_dropout: float = 0.1
    timesteps: Timesteps = Timesteps()
    weighting: str = "none"
    weighting_cap: float = 20.0

    def __post_init__(self) -> None:
        check_weighting(self.weighting, self.weighting_cap)

    def __call__(self, model: nn.Module, average: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        return self.loss(model, batch, generator)

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator, **further: Tensor) -> Tensor:
        """Scalar loss at random timesteps; `further` goes to the model beside its usual conditions."""
        noised = self.noised(batch, generator)
        output = model(*noised.inputs, **noised.batch.conditions(), **further, learned_variance=True)
        return self.loss_of(output, noised)

    def noised(self, batch: Batch, generator: torch.Generator) -> Noised:
        """The batch with noise at random timesteps, without some of its captions."""
        count, device = len(batch.latents), batch.latents.device
        t = send(self.timesteps.draw(count, generator), device)
        dropped = send(draw_rows(torch.rand, (count,), generator), device) < self.caption_dropout
        noise = draw_noise(batch, generator)
        return Noised(self.data.without_caption(batch, dropped), t, noise)

    def loss_of(self, output: Tensor, noised: Noised) -> Tensor:
        """Scalar loss of what a network said, (B, 2 * channels, H, W)."""
        losses = diffusion_loss(output.float(), noised.batch.latents, noised.noise, noised.t)
        if self.weighting != "none":
            losses = losses * self._weights.at(noised.t, losses).flatten()
        return losses.mean()

    @cached_property
    def _weights(self) -> Table:
        return Table(timestep_weights(self.weighting, self.weighting_cap).tolist())


@dataclass(frozen=True)
class ControlDiffusion(Diffusion):
    """The same loss for a `Controlled` network whose base is frozen: the hint is all there is to learn."""

    def __call__(self, model: nn.Module, average: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        if batch.hint is None:
            raise ValueError("this training data has no edge maps (`hints`); prepare it again with edges")
        return self.loss(model, batch, generator, hint=batch.hint)


@dataclass(frozen=True)
class Consistency:
    """Latent consistency distillation from a frozen teacher (PixArt-delta section 3)."""

    data: TrainingData
    teacher: Callable[..., Tensor]        # a frozen network
    guidance: float = 4.5
    huber_c: float = 0.001
    guidance_max: float | None = None     # drawn for each image from `guidance` up to this, unknown to the student

    def __call__(self, model: nn.Module, average: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        index = send(draw_rows(partial(torch.randint, GRID_SIZE), (len(batch.latents),), generator),
                     batch.latents.device)
        given, silent = batch.conditions(), self.data.without_caption(batch).conditions()
        both = {name: torch.cat([given[name], silent[name]]) for name in given}

        def teach(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            cond, uncond = self.teacher(torch.cat([x, x]), torch.cat([t, t]), **both).float().chunk(2)
            return cond, uncond

        return consistency_loss(lambda x, t: model(x, t, **given).float(), lambda x, t: average(x, t, **given).float(),
                                teach, batch.latents, draw_noise(batch, generator), index,
                                self._guidance(batch, generator), self.huber_c)

    def _guidance(self, batch: Batch, generator: torch.Generator) -> float | Tensor:
        """w, for all images or (B, 1, 1, 1) for each."""
        if self.guidance_max is None:
            return self.guidance
        share = send(draw_rows(torch.rand, (len(batch.latents),), generator), batch.latents.device).view(-1, 1, 1, 1)
        return self.guidance + (self.guidance_max - self.guidance) * share
