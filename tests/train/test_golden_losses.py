"""The training losses reproduce the official ones, gradients included."""
import math

import golden_cases
import pytest
import torch

from pixart.sampling.schedule import add_noise
from pixart.train.consistency import consistency_loss, interval, teacher_step
from pixart.train.diffusion import diffusion_loss, discretised_bits


def test_diffusion_loss_and_gradient():
    golden = golden_cases.load("08_diffusion_loss")
    given, want = golden.inputs[""], golden.outputs[""]
    output = given["model_output"].clone().requires_grad_()
    loss = diffusion_loss(output, given["latents"], given["noise"], given["t"])
    loss.mean().backward()
    tolerance = golden.meta["tolerance"]
    golden_cases.assert_matches(loss.detach(), want["loss"], tolerance)
    golden_cases.assert_matches(output.grad, want["grad"], tolerance)
    golden_cases.assert_matches(add_noise(given["latents"], given["noise"], given["t"]), want["x_t"], tolerance)


def test_what_is_next_to_impossible_costs_as_many_bits_as_officially():
    """Of a probability of 10^-12, below which the official loss does not go: infinity has no gradient."""
    zero = torch.zeros(1, dtype=torch.float64)
    assert discretised_bits(zero, zero + 50, zero).item() == pytest.approx(12 * math.log2(10))


@pytest.mark.parametrize("case", ["i0", "i7", "i49", "mixed", "near"])
def test_distillation_step_and_gradient(case):
    golden = golden_cases.load("06_lcm_distillation")
    given, want, tolerance = golden.inputs[case], golden.outputs[case], golden.meta["tolerance"]
    student = given["student"].clone().requires_grad_()
    asked = {}

    def recorded(name, answer):
        return lambda x, t: asked.setdefault(name, (x, t)) and answer

    loss = consistency_loss(
        recorded("student", student[:, :4]), recorded("average", given["ema"][:, :4]),
        recorded("teacher", (given["teacher_cond"][:, :4], given["teacher_uncond"][:, :4])),
        given["latents"], given["noise"], given["index"], guidance=4.5, huber_c=0.001)
    loss.backward()
    golden_cases.assert_matches(loss.detach(), want["loss"], tolerance)
    golden_cases.assert_matches(student.grad, want["grad_student"], tolerance)
    golden_cases.assert_matches(asked["student"][0], want["x_t"], tolerance)
    golden_cases.assert_matches(asked["average"][0], want["x_prev"], tolerance)
    assert asked["student"][1].tolist() == want["t_start"].tolist()
    assert asked["average"][1].tolist() == want["t_end"].tolist()


def test_guidance_convention_is_one_more_than_the_usual_scale():
    """w = 4.5 is classifier-free guidance at scale 5.5."""
    torch.manual_seed(0)
    x, cond, uncond = torch.randn(3, 2, 4, 4, 4, dtype=torch.float64)
    start, end = interval(torch.tensor([10, 30]))
    usual = uncond + 5.5 * (cond - uncond)
    torch.testing.assert_close(teacher_step(x, cond, uncond, start, end, 4.5),
                               teacher_step(x, usual, usual, start, end, 0.0))
