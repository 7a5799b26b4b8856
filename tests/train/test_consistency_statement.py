"""Distillation against the algorithm written out on its own: plain numbers, image after image, in float64."""
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from train.training_data import fresh, write_data

from pixart.train.average import averaged_copy
from pixart.train.consistency import consistency_loss
from pixart.train.data import PreparedFolder
from pixart.train.draws import generator_for
from pixart.train.objectives import Consistency

BETAS = [1e-4 + (2e-2 - 1e-4) * i / 999 for i in range(1000)]
ALPHAS = [math.prod(1 - beta for beta in BETAS[:t + 1]) for t in range(1000)]


def network(bend: float):
    """A noise prediction that depends on everything it is given."""
    return lambda x, t: torch.sin(bend * x) + 0.3 * torch.cos(x.roll(1, 2) + t.view(-1, 1, 1, 1).to(x) / 500)


def boundary(t: int) -> tuple[float, float]:
    """c_skip and c_out, sigma_data 0.5, timesteps scaled by 10."""
    return 0.25 / ((10 * t) ** 2 + 0.25), 10 * t / math.sqrt((10 * t) ** 2 + 0.25)


def clean(x: Tensor, eps: Tensor, t: int) -> Tensor:
    return (x - math.sqrt(1 - ALPHAS[t]) * eps) / math.sqrt(ALPHAS[t])


def stated(x0: Tensor, noise: Tensor, indices: list[int], guidance: list[float], c: float = 0.001) -> float:
    """The loss, image by image."""
    student, average, cond, uncond = network(1.0), network(0.9), network(1.1), network(0.4)
    total = 0.0
    for z, n, i, w in zip(x0, noise, indices, guidance):
        z, n, start = z[None], n[None], 20 * (i + 1) - 1
        end, now = max(start - 20, 0), torch.tensor([float(start)])
        x = math.sqrt(ALPHAS[start]) * z + math.sqrt(1 - ALPHAS[start]) * n
        skip, out = boundary(start)
        prediction = skip * x + out * clean(x, student(x, now), start)
        e_c, e_u = cond(x, now), uncond(x, now)
        x0_guided = clean(x, e_c, start) + w * (clean(x, e_c, start) - clean(x, e_u, start))
        previous = math.sqrt(ALPHAS[end]) * x0_guided + math.sqrt(1 - ALPHAS[end]) * (e_c + w * (e_c - e_u))
        skip, out = boundary(end)
        target = skip * previous + out * clean(previous, average(previous, torch.tensor([float(end)])), end)
        total += sum(math.sqrt(d * d + c * c) - c for d in (prediction - target).flatten().tolist())
    return total / x0.numel()


@pytest.mark.parametrize("guidance", [[4.5] * 4, [0.0] * 4, [3.0, 15.0, 7.5, 4.5]], ids=["4.5", "none", "each its own"])
def test_loss_is_the_one_of_the_algorithm(guidance):
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 4, 4, 6, 5, generator=generator, dtype=torch.float64)
    indices = [0, 1, 24, 49]

    def teacher(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return network(1.1)(x, t), network(0.4)(x, t)

    w = guidance[0] if len(set(guidance)) == 1 else torch.tensor(guidance, dtype=torch.float64).view(-1, 1, 1, 1)
    loss = consistency_loss(network(1.0), network(0.9), teacher, x0, noise, torch.tensor(indices), w)
    assert loss.item() == pytest.approx(stated(x0, noise, indices, guidance), rel=1e-9)


def test_guidance_is_drawn_for_each_image_inside_its_range(tmp_path):
    data = PreparedFolder(write_data(tmp_path))
    objective = Consistency(data, fresh(), guidance=3.0, guidance_max=15.0)
    drawn = torch.cat([objective._guidance(data.batch(generator_for(0, step), 16), generator_for(1, step)).flatten()
                       for step in range(40)])
    assert len(drawn.unique()) > 600 and 3 <= drawn.min() < 3.2 and 14.8 < drawn.max() <= 15
    assert abs(drawn.mean() - 9) < 0.5


def test_a_range_that_is_next_to_nothing_is_the_constant(tmp_path):
    data, model = PreparedFolder(write_data(tmp_path)), fresh().double()
    batch = data.batch(generator_for(0, 0), 4)
    batch = replace(batch, latents=batch.latents.double(), context=batch.context.double())
    losses = [Consistency(data, averaged_copy(fresh()).double(), 4.5, guidance_max=top)(
        model, averaged_copy(model), batch, generator_for(0, 0)).item() for top in (None, 4.5 + 1e-9)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and losses[0] > 0
