"""Samplers and schedule reproduce the official implementation and diffusers on recorded inputs."""
import math

import golden_cases
import pytest
import torch

from pixart.sampling import dmd, dpm_solver, lcm, schedule
from pixart.sampling.chain import Chain
from pixart.sampling.consistency import boundary
from pixart.sampling.guidance import guided


def test_alphas_cumprod_are_those_of_linear_betas():
    golden = golden_cases.load("05_lcm_sampling")
    got = torch.tensor(schedule.ALPHAS_CUMPROD, dtype=torch.float64)
    golden_cases.assert_matches(got, golden.outputs[""]["alphas_cumprod_fp64"], golden.meta["tolerance"]["fp64"])
    for t, want in {0: 0.9999, 19: 0.99423095, 499: 0.07858724, 759: 0.00287678, 999: 4.0358298e-5}.items():
        assert schedule.ALPHAS_CUMPROD[t] == pytest.approx(want, rel=5e-6)


@pytest.mark.parametrize("rule", lcm.LCM_RULES)
def test_lcm_timesteps_equal_both_published_rules(rule):
    for steps, want in golden_cases.load("05_lcm_sampling").outputs[f"timesteps.{rule}"].items():
        assert lcm.lcm_timesteps(int(steps), rule) == want.tolist()


def test_boundary_scalings():
    golden = golden_cases.load("05_lcm_sampling")
    t, want = golden.inputs["boundary"]["t"], golden.outputs["boundary"]
    for got, name in zip(boundary(t, torch.zeros(1, dtype=torch.float64)), ("c_skip_fp64", "c_out_fp64"), strict=True):
        golden_cases.assert_matches(got.flatten(), want[name], golden.meta["tolerance"]["fp64"])


@pytest.mark.parametrize("rule", lcm.LCM_RULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lcm_trajectory(rule, steps, dtype):
    golden = golden_cases.load("05_lcm_sampling")
    given, want = golden.inputs[f"traj{steps}"], golden.outputs[f"traj{steps}.{rule}"]
    eps, noise, seen = iter(given["eps"].to(dtype)), iter(given["noise"].to(dtype)), []
    final = lcm.lcm(lambda x, t: next(eps), given["x"].to(dtype), want["timesteps"].tolist(), lambda: next(noise),
                    lambda step, x, x0: seen.append(x0))
    exact = dtype == torch.float64
    tolerance = golden.meta["tolerance"]["fp64"] if exact else golden.meta["tolerance"]
    golden_cases.assert_matches(torch.stack(seen), want["denoised_fp64" if exact else "denoised"], tolerance)
    assert torch.equal(final, seen[-1])


def closed_form_noise(y):
    """The noise function the DPM-Solver goldens were computed with."""
    def eps(x, t):
        angle = (math.pi * (t + 1) / 2000).to(x.dtype).view(-1, 1, 1, 1)
        time = t.to(x.dtype).view(-1, 1, 1, 1)
        return angle.sin() * x + 0.3 * angle.cos() * (torch.tanh(x * y) + 0.5 * torch.sin(time / 160) * y)
    return eps


@pytest.mark.parametrize("rule", dpm_solver.DPM_RULES)
@pytest.mark.parametrize("steps, scale", [(8, 4.5), (14, 1.0), (14, 4.5), (20, 4.5)])
def test_dpm_solver_trajectory(rule, steps, scale):
    golden = golden_cases.load("07_dpm_solver")
    given, want = golden.inputs[""], golden.outputs[f"steps{steps}_g{scale:g}.{rule}"]
    both = torch.cat([given["uncond"], given["cond"]])
    model = closed_form_noise(given["cond"]) if scale == 1 else guided(closed_form_noise(both), scale)
    seen = []
    final = dpm_solver.dpm_solver_pp(model, given["x"], steps, rule, lambda step, x, x0: seen.append(x))
    golden_cases.assert_matches(torch.stack([*seen, final]), want["trajectory"], golden.meta["tolerance"])


def test_official_dpm_solver_nodes():
    golden = golden_cases.load("07_dpm_solver")
    want, path = golden.outputs["steps20_g4.5.official"], dpm_solver.nodes(20)
    for name, values in (("alpha_fp64", [n.alpha for n in path]), ("sigma_fp64", [n.sigma for n in path]),
                         ("lambda_fp64", [n.half_log_snr for n in path])):
        golden_cases.assert_matches(torch.tensor(values, dtype=torch.float64), want[name],
                                    golden.meta["tolerance"]["fp64"])


def test_dmd_is_one_unclipped_step_at_400():
    golden = golden_cases.load("12_dmd_one_step")
    given, asked = golden.inputs[""], []
    got = dmd.dmd(lambda x, t: asked.append(t.tolist()) or given["eps"], given["x"])
    golden_cases.assert_matches(got, golden.outputs["t400"]["x0"], golden.meta["tolerance"])
    assert asked == [[400.0, 400.0]]


@pytest.mark.parametrize("steps", [20, 100, 1000])
def test_learned_variance_step(steps):
    golden = golden_cases.load("13_learned_variance")
    given, want = golden.inputs[f"resp{steps}"], golden.outputs[f"resp{steps}"]
    tolerance, chain = golden.meta["tolerance"], Chain.respaced(steps)
    assert [chain.times[i] for i in given["t"].tolist()] == want["model_t"].tolist()
    eps, logits = given["model_output"].chunk(2, dim=1)
    x0, log_variance = chain.predicted_x0(given["x"], eps, given["t"]), chain.log_variance(logits, given["t"])
    noise = (given["t"] > 0).view(-1, 1, 1, 1) * given["noise"]         # the last step adds none
    sample = chain.posterior_mean(x0, given["x"], given["t"]) + (0.5 * log_variance).exp() * noise
    for got, name in ((sample, "sample"), (x0, "pred_xstart"), (log_variance, "log_variance")):
        golden_cases.assert_matches(got, want[name], tolerance)
