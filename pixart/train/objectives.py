"""What a trainer minimises, for a network and a prepared batch: diffusion, with control, or latent consistency."""
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..sampling.schedule import STEPS, add_noise
from .consistency import GRID_SIZE, consistency_loss
from .data import Batch, PreparedFolder
from .diffusion import diffusion_loss
from .draws import draw

# objective(model in training, its moving average, batch, generator) -> scalar loss
Objective = Callable[[nn.Module, nn.Module, Batch, torch.Generator], Tensor]


def draw_noise(batch: Batch, generator: torch.Generator) -> Tensor:
    """Unit Gaussian noise like the batch's latents."""
    return draw(torch.randn, batch.latents.shape, generator).to(batch.latents)


def noise_prediction_loss(model: nn.Module, batch: Batch, generator: torch.Generator, data: PreparedFolder,
                          caption_dropout: float, **further: Tensor) -> Tensor:
    """Scalar diffusion loss at random timesteps; `further` goes to the model beside its usual conditions."""
    count = len(batch.latents)
    t = draw(partial(torch.randint, STEPS), (count,), generator).to(batch.latents.device)
    dropped = draw(torch.rand, (count,), generator).to(batch.latents.device) < caption_dropout
    noise, batch = draw_noise(batch, generator), data.without_caption(batch, dropped)
    noisy = add_noise(batch.latents, noise, t)
    output = model(noisy, t.float(), **batch.conditions(), **further, learned_variance=True)
    return diffusion_loss(output.float(), batch.latents, noise, t).mean()


@dataclass(frozen=True)
class Diffusion:
    """Noise prediction with learned variance; a share of captions is dropped so that guidance can be used."""

    data: PreparedFolder
    caption_dropout: float = 0.1

    def __call__(self, model: nn.Module, average: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        return noise_prediction_loss(model, batch, generator, self.data, self.caption_dropout)


@dataclass(frozen=True)
class Control:
    """The same loss for a `Controlled` network whose base is frozen: the hint is all there is to learn (6.4)."""

    data: PreparedFolder
    caption_dropout: float = 0.1

    def __call__(self, model: nn.Module, average: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        if batch.hint is None:
            raise ValueError("this training data has no edge maps (`hints`); prepare it again with edges")
        return noise_prediction_loss(model, batch, generator, self.data, self.caption_dropout, hint=batch.hint)


@dataclass(frozen=True)
class Consistency:
    """Latent consistency distillation from a frozen teacher (PixArt-delta section 3)."""

    data: PreparedFolder
    teacher: nn.Module
    guidance: float = 4.5
    huber_c: float = 0.001
    guidance_max: float | None = None     # drawn for each picture from `guidance` up to this, untold to the student

    def __call__(self, model: nn.Module, average: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        index = draw(partial(torch.randint, GRID_SIZE), (len(batch.latents),), generator).to(batch.latents.device)
        given, silent = batch.conditions(), self.data.without_caption(batch).conditions()
        both = {name: torch.cat([given[name], silent[name]]) for name in given}

        def teach(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            return self.teacher(torch.cat([x, x]), torch.cat([t, t]), **both).float().chunk(2)

        return consistency_loss(lambda x, t: model(x, t, **given).float(), lambda x, t: average(x, t, **given).float(),
                                teach, batch.latents, draw_noise(batch, generator), index,
                                self._guidance(batch, generator), self.huber_c)

    def _guidance(self, batch: Batch, generator: torch.Generator) -> float | Tensor:
        """w, for all pictures or (B, 1, 1, 1) for each."""
        if self.guidance_max is None:
            return self.guidance
        share = draw(torch.rand, (len(batch.latents),), generator).to(batch.latents).view(-1, 1, 1, 1)
        return self.guidance + (self.guidance_max - self.guidance) * share
