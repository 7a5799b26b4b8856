"""Real images noised to a timestep and finished by the teacher: at which noise is what the prompt says lost?"""
from math import sqrt

import torch
from torch import Tensor

from ...model.transformer import PixArtTransformer
from ...sampling.guidance import guided
from ...sampling.noise import ImageNoise
from ...sampling.schedule import ALPHAS_CUMPROD, Model, add_noise, batch_of, predicted_x0
from ...text.encoded import Encoded, stack_captions
from ..measure.batches import BenchImages
from ..measure.bench import Bench
from ..measure.prompts import PromptGroup

STARTS = (0, 200, 350, 500, 650, 800, 999)       # 0: the autoencoder alone
FINISH_STEPS = 20


def signal_to_noise(t: int) -> float:
    """Ratio of the variances of signal and noise at a timestep."""
    kept = ALPHAS_CUMPROD[t]
    return kept / (1 - kept)


def ddim_times(start: int, steps: int = FINISH_STEPS) -> list[int]:
    """Timesteps from `start` down in even strides, 0 left out; fewer than `steps` where there are not as many."""
    times = [round(start * (steps - k) / steps) for k in range(steps)]
    return sorted({t for t in times if t > 0}, reverse=True)


def ddim(model: Model, x: Tensor, times: list[int]) -> Tensor:
    """x (B, C, H, W) at times[0] -> clean latent, without added noise (Song et al. 2021, equation 12 with sigma 0)."""
    for now, after in zip(times, [*times[1:], -1]):
        t = batch_of(now, x)
        eps = model(x, t)
        x0 = predicted_x0(x, eps, t)
        kept = 1.0 if after < 0 else ALPHAS_CUMPROD[after]
        x = sqrt(kept) * x0 + sqrt(1 - kept) * eps
    return x


def network(model: PixArtTransformer, bench: Bench, group: PromptGroup, caption: Encoded,
            guidance: float = 1.0) -> Model:
    """The teacher with these captions of a group, guided away from the empty one unless `guidance` is 1."""
    context, mask = (caption.context, caption.mask) if guidance == 1 else stack_captions(bench.null, caption)
    context, mask = context.to(bench.device), mask.to(bench.device)
    size = torch.tensor([[group.height, group.width]], dtype=torch.float32, device=bench.device).expand(len(mask), 2)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        return model(x, t, context, mask, size, size[:, 0] / size[:, 1])
    return predict if guidance == 1 else guided(predict, guidance)


def latents_of(bench: Bench, real: BenchImages, group: PromptGroup) -> Tensor:
    """Scaled latents (B, 4, h, w) of the real images of a group."""
    return bench.vae.encode(real.rows(group.members).to(bench.device).float() / 255)


def group_noise(bench: Bench, group: PromptGroup, like: Tensor) -> Tensor:
    """Unit Gaussian noise of the group's own seeds, of the shape of `like`."""
    seeds = [group.seed + i for i in range(len(group.members))]
    return ImageNoise(seeds, tuple(like.shape[1:]), bench.device)()


@torch.inference_mode()
def finished(model: PixArtTransformer, bench: Bench, real: BenchImages, start: int, guidance: float) -> BenchImages:
    """The real images encoded, noised to timestep `start`, denoised by at most `FINISH_STEPS` DDIM steps, decoded."""
    def finish(group: PromptGroup) -> Tensor:
        x0 = latents_of(bench, real, group)
        if start == 0:
            return x0
        noised = add_noise(x0, group_noise(bench, group, x0), torch.full((len(x0),), start, device=x0.device))
        return ddim(network(model, bench, group, bench.text(group), guidance), noised, ddim_times(start))
    return bench.generate_groups(finish)
