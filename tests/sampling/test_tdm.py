"""The sampler of trajectory distribution matching: DDIM as diffusers has it, its published grids, and Euler's step."""
import math

import pytest
import torch

from pixart.sampling.samplers import SAMPLERS
from pixart.sampling.schedule import ALPHAS_CUMPROD, add_noise
from pixart.sampling.tdm import tdm, tdm_timesteps


def smooth_model(x, t):
    return torch.tanh(x) * (0.5 + t.view(-1, 1, 1, 1) / 2000)


def test_published_timesteps():
    assert tdm_timesteps() == [899, 674, 449, 224]
    assert tdm_timesteps(4, "tdm-800") == [799, 599, 399, 199]
    assert tdm_timesteps(1) == [899] and tdm_timesteps(2) == [899, 449]


def test_published_sigmas():
    sigmas = [math.sqrt((1 - ALPHAS_CUMPROD[t]) / ALPHAS_CUMPROD[t]) for t in tdm_timesteps()]
    assert sigmas == pytest.approx([60.2714, 10.0230, 2.62195, 0.831227], rel=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_it_is_diffusers_ddim(steps):
    from diffusers import DDIMScheduler
    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False,
                              set_alpha_to_one=True)
    times = tdm_timesteps(steps)
    x = noise = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t, after in zip(times, [*times[1:], -1]):
        # its scheduler steps by 1000 // steps; ours are 225 apart, or whatever is left to clean at the end
        scheduler.num_inference_steps = scheduler.config.num_train_timesteps // (t - after)
        assert t - 1000 // scheduler.num_inference_steps < 0 or after >= 0
        step = scheduler.step(smooth_model(x, torch.full((2,), float(t))), t, x)
        x = step.pred_original_sample if after < 0 else scheduler.add_noise(
            step.pred_original_sample, smooth_model(x, torch.full((2,), float(t))), torch.tensor([after]))
    torch.testing.assert_close(tdm(smooth_model, noise, times), x, rtol=1e-5, atol=1e-5)


def test_in_sigmas_it_is_eulers_step():
    noise = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = tdm_timesteps()
    sigmas = [math.sqrt((1 - ALPHAS_CUMPROD[t]) / ALPHAS_CUMPROD[t]) for t in times] + [0.0]
    x = noise * math.sqrt(1 + sigmas[0] ** 2)
    for t, here, there in zip(times, sigmas, sigmas[1:]):
        eps = smooth_model(x / math.sqrt(1 + here ** 2), torch.full((2,), float(t)))
        x = x + (there - here) * eps
    torch.testing.assert_close(tdm(smooth_model, noise, times), x, rtol=1e-10, atol=1e-10)


def test_a_model_that_knows_the_image_returns_it():
    x0 = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    start = add_noise(x0, noise, 899)

    def oracle(x, t):
        a = ALPHAS_CUMPROD[int(t)]
        return (x - math.sqrt(a) * x0) / math.sqrt(1 - a)

    seen = []
    got = tdm(oracle, start, tdm_timesteps(), lambda step, x, guess: seen.append(guess))
    for guess in (*seen, got):
        torch.testing.assert_close(guess, x0, rtol=1e-8, atol=1e-8)


def test_it_is_a_row_of_the_table():
    row = SAMPLERS["tdm"]
    assert (row.steps, row.guided, row.noises(4)) == (4, False, 1)
    assert row.times(4, "official") == [899.0, 674.0, 449.0, 224.0]
    noise = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    got = row.run(smooth_model, lambda: noise, 4, "tdm-800", None)
    assert torch.equal(got, tdm(smooth_model, noise, tdm_timesteps(4, "tdm-800")))


@pytest.mark.parametrize("steps, rule", [(0, "official"), (901, "official"), (4, "diffusers")])
def test_impossible_requests_are_refused(steps, rule):
    with pytest.raises(ValueError, match="TDM"):
        tdm_timesteps(steps, rule)
