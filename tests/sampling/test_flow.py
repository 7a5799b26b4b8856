"""Rectified flow: the host's and diffusers' arithmetic, straight ways in one step, noise levels that shift."""
import pytest
import torch

from pixart.sampling.flow import euler_flow, flow_latent, flow_shares, flow_shift_of, shift_share


def curved(x, t):
    return torch.tanh(x) * (0.5 - t.view(-1, 1, 1, 1) / 2000)


def noise():
    return torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("shift", [1.0, 2.0, 0.5])
def test_it_equals_diffusers_step_by_step(shift):
    """diffusers' velocity points from image to noise."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[1 - i / 12 for i in range(12)])
    x = noise().float()
    for t in scheduler.timesteps:
        x = scheduler.step(-curved(x, t.expand(2)), t, x).prev_sample
    found = euler_flow(curved, noise().float(), flow_shares(12, shift))
    torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-5)


def test_a_straight_way_needs_one_step():
    x0 = torch.rand(2, 4, 6, 6, dtype=torch.float64)
    read, seen = [], []

    def exact(x, t):
        read.append(x)
        return x0 - noise()
    for steps in (1, 7):
        found = euler_flow(exact, noise(), flow_shares(steps, 2.0), lambda *now: seen.append(now))
        torch.testing.assert_close(found, x0)
    assert [step for step, _, _ in seen] == [0, *range(7)] and all(torch.allclose(clean, x0) for _, _, clean in seen)
    assert all(x is given for (_, x, _), given in zip(seen, read, strict=True))


def test_what_the_model_is_told_is_what_the_latent_holds():
    told, x0 = [], torch.rand(2, 4, 6, 6, dtype=torch.float64)

    def exact(x, t):
        told.append(t[0].item())
        torch.testing.assert_close(x, flow_latent(x0, noise(), t / 1000), rtol=1e-6, atol=1e-6)
        return x0 - noise()
    euler_flow(exact, noise(), flow_shares(4, 2.0))
    assert told == pytest.approx([1000, 6000 / 7, 2000 / 3, 400])


def test_shares_of_noise_shift_and_keep_their_ends():
    assert flow_shares(4) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert shift_share(0.5, 2.0) == pytest.approx(2 / 3) and shift_share(0.0, 3.0) == 0 and shift_share(1.0, 3.0) == 1
    assert torch.equal(shift_share(torch.tensor([0.5]), 1.0), torch.tensor([0.5]))


def test_the_shift_is_the_ratio_of_the_sides_of_equal_squares():
    assert flow_shift_of(512, 512, 512) == flow_shift_of(256, 1024, 512) == 1 and flow_shift_of(1024, 1024, 512) == 2


@pytest.mark.parametrize("steps, shift", [(0, 1.0), (3, 0.0)])
def test_impossible_steps_are_refused(steps, shift):
    with pytest.raises(ValueError, match="at least 1 step"):
        flow_shares(steps, shift)
