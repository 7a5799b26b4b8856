"""What an optimizer is given: weights, whatever the network around the blocks is, and settings."""
from dataclasses import replace

import pytest
from torch import nn
from train.training_data import SHORT, TINY, fresh

from pixart.model.controlnet import Controlled, PixArtControlNet
from pixart.model.feedback import Feedback, WithFeedback
from pixart.train.loop_config import OPTIMIZERS
from pixart.train.optimizers import CAME_CONFIDENCE, optimizers


def frozen() -> nn.Module:
    return fresh().requires_grad_(False)


def controlled() -> nn.Module:
    base = frozen()
    return Controlled(base, PixArtControlNet.copy_of(base, 1).requires_grad_(True))


@pytest.mark.parametrize(("make", "inside"), [
    (fresh, ("blocks.0.", "blocks.1.")), (controlled, ("control.controlnet.0.copied_block.",)),
    (lambda: WithFeedback(frozen(), Feedback(TINY, 0, 1)), ("feedback.block.",))], ids=("whole", "control", "feedback"))
def test_muon_moves_the_matrices_of_all_trained_blocks(make, inside):
    model = make()
    others, muon = optimizers(model, replace(SHORT, optimizer="muon"))
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    moved = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert moved == {name for name, p in model.named_parameters() if p.ndim == 2 and name.startswith(inside)
                     and not name.endswith("scale_shift_table.weight")} and len(moved) >= 7
    rest = [names[id(p)] for group in others.param_groups for p in group["params"]]
    assert sorted([*moved, *rest]) == sorted(names.values())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_asked_for_reaches_the_optimizer(name):
    asked = replace(SHORT, optimizer=name, learning_rate=2e-3, betas=(0.7, 0.8), epsilon=1e-5, weight_decay=0.03)
    first, *muon = optimizers(fresh(), asked)
    told = first.param_groups[0]
    assert tuple(told["betas"]) == (0.7, 0.8, *([CAME_CONFIDENCE] if name == "came" else []))
    assert name == "came" or told["eps"] == 1e-5
    groups = [group for optimizer in (first, *muon) for group in optimizer.param_groups]
    assert {(group["lr"], group["weight_decay"]) for group in groups} == {(2e-3, 0.03)}
