"""Samplers against diffusers' schedulers, and what they promise: seeds, batches, refusals, interruption."""
import pytest
import torch

from pixart.sampling.dpm_solver import dpm_solver_pp, nodes
from pixart.sampling.lcm import RULES, lcm, lcm_timesteps
from pixart.sampling.noise import PictureNoise


def smooth_model(x, t):
    return torch.tanh(x) * (0.5 + t.view(-1, 1, 1, 1) / 2000)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_lcm_equals_diffusers_step_by_step(steps):
    from diffusers import LCMScheduler
    scheduler = LCMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    scheduler.set_timesteps(steps)
    times = lcm_timesteps(steps, "diffusers")
    assert scheduler.timesteps.tolist() == times
    start = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    theirs, drawn = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    x, cleaned = start, []
    for t in scheduler.timesteps:
        step = scheduler.step(smooth_model(x, t.expand(2)), t, x, generator=theirs)
        x = step.prev_sample
        cleaned.append(step.denoised)
    seen = []
    got = lcm(smooth_model, start, times, lambda: torch.randn(start.shape, generator=drawn),
              lambda i, x, x0: seen.append(x0))
    for ours, want in zip(seen, cleaned):
        torch.testing.assert_close(ours, want, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(got, x, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("steps", [14, 20])
def test_dpm_solver_equals_diffusers(steps):
    from diffusers import DPMSolverMultistepScheduler
    scheduler = DPMSolverMultistepScheduler()
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == [node.time for node in nodes(steps, "diffusers")[:-1]]
    x = start = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        x = scheduler.step(smooth_model(x, t.expand(1)), t, x).prev_sample
    torch.testing.assert_close(dpm_solver_pp(smooth_model, start, steps, "diffusers"), x, rtol=1e-4, atol=1e-4)


def test_timesteps_of_four_official_steps():
    assert lcm_timesteps(4) == [999, 759, 519, 279]
    assert lcm_timesteps(4, "diffusers") == [999, 759, 499, 259]


@pytest.mark.parametrize("rule", RULES)
def test_lower_strength_starts_further_down(rule):
    for steps in (1, 2, 4):
        times = lcm_timesteps(steps, rule, strength=0.5)
        assert times[0] == 499 and len(times) == steps and times == sorted(set(times), reverse=True)


@pytest.mark.parametrize("steps, strength, rule", [(0, 1, "official"), (-1, 1, "official"), (51, 1, "diffusers"),
                                                   (4, 0, "official"), (4, 1.5, "official"), (4, 0.05, "official"),
                                                   (4, 1, "euler")])
def test_impossible_lcm_requests_are_refused(steps, strength, rule):
    with pytest.raises(ValueError):
        lcm_timesteps(steps, rule, strength)


@pytest.mark.parametrize("steps, rule", [(0, "official"), (1000, "diffusers"), (20, "karras")])
def test_impossible_dpm_requests_are_refused(steps, rule):
    with pytest.raises(ValueError):
        nodes(steps, rule)


def test_picture_does_not_depend_on_its_batch():
    together = PictureNoise([3, 4, 5], (4, 8, 8))
    alone = PictureNoise([4], (4, 8, 8))
    for _ in range(3):
        assert torch.equal(together()[1:2], alone())


def test_same_seed_same_picture_other_seed_other_picture():
    def draw(seed):
        noise = PictureNoise([seed], (4, 8, 8))
        return lcm(smooth_model, noise(), lcm_timesteps(4), noise)
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))


def test_callback_can_stop_the_sampling():
    steps = []

    def stop(step, x, x0):
        steps.append(step)
        if step == 1:
            raise InterruptedError

    noise = PictureNoise([0], (4, 8, 8))
    with pytest.raises(InterruptedError):
        lcm(smooth_model, noise(), lcm_timesteps(4), noise, stop)
    assert steps == [0, 1]
