"""The teacher's noise error by timestep, with the prompt and without: where it looks at the text."""
from dataclasses import dataclass

import torch
from torch import Tensor

from ...model.transformer import PixArtTransformer
from ...sampling.schedule import STEPS, add_noise
from ...text.encoded import join_encoded
from ..measure.batches import BenchImages
from ..measure.bench import Bench
from .finish import group_noise, latents_of, network, signal_to_noise

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Mean squared error of the predicted noise over timesteps first..last, and the standard error of that mean."""

    first: int
    last: int
    loss: float
    error: float
    without_text: float         # with the empty prompt instead
    signal_to_noise: float      # in the middle of the bin


@torch.inference_mode()
def losses(model: PixArtTransformer, bench: Bench, real: BenchImages) -> list[Bin]:
    """Every prompt once in every bin, at a timestep drawn from it; the same noise with the prompt and without."""
    rows: list[Tensor] = []             # (2, BINS, b)
    draws = torch.Generator().manual_seed(bench.prompts.seed)
    for group in bench.prompts.groups(bench.batch):
        x0 = latents_of(bench, real, group)
        noise = group_noise(bench, group, x0)
        predict = network(model, bench, group, bench.text(group))
        plain = network(model, bench, group, join_encoded([bench.null] * len(x0)))
        within = torch.randint(STEPS // BINS, (BINS, len(x0)), generator=draws)
        times = (within + torch.arange(BINS)[:, None] * (STEPS // BINS)).to(bench.device)
        errors = [[(one(add_noise(x0, noise, t), t.float()) - noise).square().mean((1, 2, 3)) for t in times]
                  for one in (predict, plain)]
        rows.append(torch.stack([torch.stack(error) for error in errors]).cpu().double())
    found, count = torch.cat(rows, 2), len(bench.prompts)
    bins = []
    for k in range(BINS):
        first, last = k * STEPS // BINS, (k + 1) * STEPS // BINS - 1
        with_text, without = found[:, k]
        bins.append(Bin(first, last, with_text.mean().item(), (with_text.std() / count ** 0.5).item(),
                        without.mean().item(), signal_to_noise((first + last) // 2)))
    return bins
