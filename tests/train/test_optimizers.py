"""Which weights an optimizer is given, whatever the network around the blocks is."""
from dataclasses import replace

import pytest
from torch import nn
from train.training_data import SHORT, TINY, fresh

from pixart.model.controlnet import Controlled, PixArtControlNet
from pixart.model.feedback import Feedback, WithFeedback
from pixart.train.optimizers import optimizers


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
