"""Several optimizers under the scaler of fp16: each gradient is unscaled once, and an overflow stops all of them."""
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from pixart.train.scaled_step import move_together


def scaled(*factors: float) -> tuple[torch.amp.GradScaler, list[SimpleNamespace], list[nn.Parameter]]:
    """Parameters of value 1 whose gradients are `factors`, an optimizer for each, and the scaler that knows them."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    weights = [nn.Parameter(torch.ones(2)) for _ in factors]
    scaler.scale(sum((factor * weight).sum() for factor, weight in zip(factors, weights))).backward()
    steppers = [SimpleNamespace(optimizer=torch.optim.SGD([weight], lr=1.0)) for weight in weights]
    for stepper in steppers:
        scaler.unscale_(stepper.optimizer)
    return scaler, steppers, weights


def norm_of(weights: list[nn.Parameter]) -> Tensor:
    return nn.utils.clip_grad_norm_(weights, 100.0)


def test_every_optimizer_steps_by_its_own_gradient():
    scaler, steppers, weights = scaled(2.0, 3.0)
    move_together(scaler, steppers, norm_of(weights))
    assert [weight.tolist() for weight in weights] == [[-1.0, -1.0], [-2.0, -2.0]]
    assert scaler.get_scale() == 1024


@pytest.mark.parametrize("factors", [(2.0, float("inf")), (float("nan"), 3.0)])
def test_an_overflow_in_one_moves_none_and_lowers_the_scale(factors):
    scaler, steppers, weights = scaled(*factors)
    move_together(scaler, steppers, norm_of(weights))
    assert [weight.tolist() for weight in weights] == [[1.0, 1.0]] * 2 and scaler.get_scale() == 512

