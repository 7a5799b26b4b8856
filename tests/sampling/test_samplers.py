"""Samplers against diffusers' schedulers, and what they promise: seeds, batches, refusals, interruption."""
import pytest
import torch

from pixart.sampling.chain import Chain
from pixart.sampling.dpm_solver import dpm_solver_pp, dpm_step, node_at, nodes
from pixart.sampling.lcm import LCM_RULES, lcm, lcm_timesteps
from pixart.sampling.noise import ImageNoise
from pixart.sampling.samplers import SAMPLERS, sampler


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


def test_dpm_timesteps_are_those_of_diffusers_in_any_number():
    """Also where one lies just between two: 30 steps pass 499, not 500."""
    from diffusers import DPMSolverMultistepScheduler
    scheduler = DPMSolverMultistepScheduler()
    for steps in (*range(1, 110), 500, 750):
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps.tolist() == [node.time for node in nodes(steps, "diffusers")[:-1]], steps


@pytest.mark.parametrize("strength", [0.58, 0.6, 0.9, 1.0])
def test_lcm_timesteps_are_those_of_diffusers_in_any_number_at_any_strength(strength):
    from diffusers import LCMScheduler
    scheduler = LCMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    for steps in range(1, int(50 * strength) + 1):
        scheduler.set_timesteps(steps, strength=strength)
        assert scheduler.timesteps.tolist() == lcm_timesteps(steps, "diffusers", strength), steps


def test_a_shortened_chain_keeps_the_timesteps_of_the_published_code():
    """Which adds up its stride: at 21 steps the middle is 499, one rounding below 499.5."""
    assert Chain.respaced(21).times[:11] == (0, 50, 100, 150, 200, 250, 300, 350, 400, 450, 499)
    assert Chain.respaced(1000).times == tuple(range(1000))
    for steps in (2, 3, 100, 250, 999):
        place, kept = 0.0, []
        for _ in range(steps):
            kept.append(round(place))
            place += 999 / (steps - 1)
        assert Chain.respaced(steps).times == tuple(kept)


def test_timesteps_of_four_official_steps():
    assert lcm_timesteps(4) == [999, 759, 519, 279]
    assert lcm_timesteps(4, "diffusers") == [999, 759, 499, 259]


@pytest.mark.parametrize("rule", LCM_RULES)
def test_lower_strength_starts_further_down(rule):
    for steps in (1, 2, 4):
        times = lcm_timesteps(steps, rule, strength=0.5)
        assert times[0] == 499 and len(times) == steps and times == sorted(set(times), reverse=True)


@pytest.mark.parametrize("steps, strength, rule, words", [
    (0, 1, "official", "0 LCM steps asked for; between 1 and 50 are possible$"), (-1, 1, "official", "-1 LCM steps"),
    (51, 1, "diffusers", "51 LCM steps"), (4, 0, "official", "strength is 0;"),
    (4, 1.5, "official", "strength is 1.5;"), (4, 1, "euler", "rule 'euler'; use official"),
    (4, 0.05, "official", r"between 1 and 2 are possible at strength \(denoise\) 0.05$"),
    (1, 0.01, "official", r"strength \(denoise\) 0.01 begins below the first of .* 50 timesteps; use at least 0.02")])
def test_impossible_lcm_requests_are_refused(steps, strength, rule, words):
    with pytest.raises(ValueError, match=words):
        lcm_timesteps(steps, rule, strength)


@pytest.mark.parametrize("steps, rule, words", [
    (0, "official", "0 steps asked for; between 1 and 999"), (1000, "diffusers", "1000 steps asked for; between"),
    (20, "karras", "rule 'karras'; use official or diffusers")])
def test_impossible_dpm_requests_are_refused(steps, rule, words):
    with pytest.raises(ValueError, match=words):
        nodes(steps, rule)


def test_image_does_not_depend_on_its_batch():
    together = ImageNoise([3, 4, 5], (4, 8, 8))
    alone = ImageNoise([4], (4, 8, 8))
    for _ in range(3):
        assert torch.equal(together()[1:2], alone())


def test_same_seed_same_image_other_seed_other_image():
    def draw(seed):
        noise = ImageNoise([seed], (4, 8, 8))
        return lcm(smooth_model, noise(), lcm_timesteps(4), noise)
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))


def test_callback_can_stop_the_sampling():
    steps = []

    def stop(step, x, x0):
        steps.append(step)
        if step == 1:
            raise InterruptedError

    noise = ImageNoise([0], (4, 8, 8))
    with pytest.raises(InterruptedError):
        lcm(smooth_model, noise(), lcm_timesteps(4), noise, stop)
    assert steps == [0, 1]


def known_image(rows=1):
    return torch.randn(rows, 4, 6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def noise_in(x, t):
    """What a model that knows the image predicts."""
    node = node_at(t[0].item())
    return (x - node.alpha * known_image(len(x))) / node.sigma


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_callback_is_told_the_step_what_the_model_reads_and_the_image_it_sees(name):
    chosen, read, told = SAMPLERS[name], [], []
    noise = ImageNoise([1], (4, 6, 6), dtype=torch.float64)
    found = chosen.run(lambda x, t: read.append(x) or noise_in(x, t), noise, chosen.steps, "official",
                       lambda *now: told.append(now))
    assert [step for step, _, _ in told] == list(range(chosen.steps))
    assert all(x is given for (_, x, _), given in zip(told, read, strict=True))
    for _, _, x0 in told:
        torch.testing.assert_close(x0, known_image(), rtol=0, atol=1e-5)
    torch.testing.assert_close(found, known_image(), rtol=0, atol=0.05)     # DPM-Solver ends at t = 0, with some noise


@pytest.mark.parametrize("steps", [1, 1001])
def test_impossible_chains_are_refused(steps):
    with pytest.raises(ValueError, match="between 2 and 1000"):
        Chain.respaced(steps)


def test_seeds_are_those_of_64_bits():
    for seed in (-2 ** 63, 2 ** 64 - 1):
        assert ImageNoise([seed], (2,), dtype=torch.float16)().dtype == torch.float16
    for seed in (-2 ** 63 - 1, 2 ** 64):
        with pytest.raises(ValueError, match=f"seed is {seed}; it must fit into 64 bits"):
            ImageNoise([0, seed], (2,))


def by_hand(start, steps, first_order):
    """DPM-Solver++ 2M written out from its statement; `first_order`: the steps that use one evaluation only."""
    path, x, x0s = nodes(steps), start, []
    for i, (s, t) in enumerate(zip(path, path[1:])):
        x0s.append((x - s.sigma * smooth_model(x, torch.full((len(x),), s.time))) / s.alpha)
        data = x0s[-1]
        if i not in first_order:
            before = path[i - 1]
            r = (s.half_log_snr - before.half_log_snr) / (t.half_log_snr - s.half_log_snr)
            data = (1 + 1 / (2 * r)) * x0s[-1] - 1 / (2 * r) * x0s[-2]
        x = t.sigma / s.sigma * x + (t.alpha - t.sigma * s.alpha / s.sigma) * data
    return x


@pytest.mark.parametrize("steps, last_too", [(2, True), (9, True), (10, False), (11, False)])
def test_last_official_step_is_first_order_below_ten_steps(steps, last_too):
    start = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = dpm_solver_pp(smooth_model, start, steps)
    other = by_hand(start, steps, {0} if last_too else {0, steps - 1})
    torch.testing.assert_close(got, by_hand(start, steps, {0, steps - 1} if last_too else {0}), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(got, other, rtol=1e-6)


def test_dpm_steps_are_exact_in_float64():
    """With the right x0 at every step the solver follows the line between noise and x0, to 1e-12."""
    x0, noise = (torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(i)).double() for i in range(2))
    path = nodes(20)
    for here, there in zip(path, path[1:]):
        x = here.alpha * x0 + here.sigma * noise
        want = there.alpha * x0 + there.sigma * noise
        torch.testing.assert_close(dpm_step(x, here, there, x0, None), want, rtol=1e-12, atol=1e-12)


def test_unknown_samplers_name_the_known_ones():
    with pytest.raises(ValueError, match="euler.*lcm, dpm, ddim, dmd"):
        sampler("euler")


def test_settings_of_a_training_take_every_sampler():
    from pixart.train.settings import ValidateSettings
    for name in SAMPLERS:
        assert ValidateSettings(sampler=name).sampler == name
    with pytest.raises(ValueError, match="euler"):
        ValidateSettings(sampler="euler")
