"""Muon against torch's own, against the singular value decomposition, and matrices together against each by itself."""
import copy

import pytest
import torch
from torch import Tensor

from pixart.train import muon
from pixart.train.muon import Muon, orthogonal, stacks

SHAPES = ((24, 24), (24, 96), (96, 24), (24, 24), (7, 24), (24, 24))


def matrices(shapes=SHAPES) -> list[Tensor]:
    make = torch.Generator().manual_seed(1)
    found = [torch.randn(shape, generator=make).requires_grad_() for shape in shapes]
    for matrix in found:
        matrix.grad = torch.randn(matrix.shape, generator=make)
    return found


def moved(optimizer: torch.optim.Optimizer, trained: list[Tensor], steps: int = 3) -> list[Tensor]:
    before = [matrix.detach().clone() for matrix in trained]
    for number in range(steps):
        make = torch.Generator().manual_seed(10 + number)
        for matrix in trained:
            matrix.grad = torch.randn(matrix.shape, generator=make)
        optimizer.step()
    return [matrix.detach() - old for matrix, old in zip(trained, before, strict=True)]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has its own Muon from 2.9 on")
@pytest.mark.parametrize(("dtype", "apart"), [(torch.bfloat16, 0.005), (torch.float32, 0.03)], ids=str)
def test_it_moves_matrices_as_torchs_own_does(monkeypatch, dtype, apart):
    monkeypatch.setattr(muon, "fitting_precision", lambda *_: "bf16" if dtype == torch.bfloat16 else "no")
    ours, theirs = matrices(), matrices()
    got = moved(Muon(ours, lr=0.01, weight_decay=0.1), ours)
    want = moved(torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"), theirs)
    for one, other in zip(got, want, strict=True):      # torch's own rounds to bfloat16: 8 bits
        assert (one - other).norm() < apart * other.norm()


@pytest.mark.parametrize("shape", [(24, 24), (24, 96), (96, 24)], ids=str)
def test_every_direction_is_moved_alike(shape):
    left, _, right = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(3)),
                                      full_matrices=False)
    [found] = orthogonal([left @ torch.diag(torch.linspace(0.1, 5.0, 24)) @ right], torch.float32)
    inside = left.T @ found @ right.T                   # in the matrix's own directions
    sizes = inside.diagonal()
    assert torch.allclose(inside, torch.diag(sizes), atol=1e-4)
    assert sizes.min() > 0.65 and sizes.max() < 1.25


def test_matrices_together_move_as_each_by_itself(monkeypatch):
    together, alone = matrices(), matrices()
    got = moved(Muon(together, lr=0.01), together)
    monkeypatch.setattr(muon, "STACKED", 1)
    assert all(len(stack) == 1 for stack in stacks(alone))
    for one, other in zip(got, moved(Muon(alone, lr=0.01), alone), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_stacks_hold_one_shape_and_no_more_than_they_may(monkeypatch):
    trained = matrices()
    assert [[tuple(one.shape) for one in stack] for stack in stacks(trained)] == [
        [(24, 24)] * 3, [(24, 96)], [(96, 24)], [(7, 24)]]
    monkeypatch.setattr(muon, "STACKED", 2 * 24 * 24)
    assert [len(stack) for stack in stacks(trained)] == [2, 1, 1, 1, 1]


def test_a_matrix_without_a_gradient_stays():
    trained = matrices()
    trained[1].grad = None
    before = trained[1].detach().clone()
    Muon(trained, lr=0.01).step()
    assert torch.equal(trained[1], before)


def test_a_gradient_of_zero_moves_nothing():
    [matrix] = matrices(((24, 24),))
    before, matrix.grad = matrix.detach().clone(), torch.zeros(24, 24)
    Muon([matrix], lr=0.01, weight_decay=0.0).step()
    assert torch.equal(matrix, before)


def test_weights_decay_by_the_learning_rate():
    [matrix] = matrices(((24, 24),))
    before, matrix.grad = matrix.detach().clone(), torch.zeros(24, 24)
    Muon([matrix], lr=0.5, weight_decay=0.1).step()
    torch.testing.assert_close(matrix.detach(), 0.95 * before)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has its own Muon from 2.9 on")
def test_it_goes_on_from_a_state_of_torchs_own():
    theirs = matrices()
    before = torch.optim.Muon(theirs, lr=0.01, adjust_lr_fn="match_rms_adamw")
    moved(before, theirs)
    ours = [matrix.detach().clone().requires_grad_() for matrix in theirs]
    optimizer = Muon(ours, lr=0.01)
    optimizer.load_state_dict(copy.deepcopy(before.state_dict()))
    for one, other in zip(moved(optimizer, ours, 1), moved(before, theirs, 1), strict=True):
        assert (one - other).norm() < 0.03 * other.norm()


def test_other_ranks_are_refused():
    with pytest.raises(ValueError, match=r"matrices only, this tensor has shape \(3,\); give the others to AdamW"):
        Muon([torch.zeros(3, requires_grad=True)])
