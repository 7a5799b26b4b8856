"""One-step distillation: its statements, its pairs, and that it learns to make what its teacher makes."""
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from train.training_data import SHORT, TINY, fresh, write_data

from pixart.prepare.pairs import make_pairs
from pixart.prepare.shards import Shard, shard_paths, write_shard
from pixart.sampling.dmd import dmd
from pixart.sampling.dpm_solver import dpm_solver_pp
from pixart.sampling.guidance import guided
from pixart.sampling.schedule import ALPHAS_CUMPROD
from pixart.train.data import PreparedFolder
from pixart.train.draws import generator_for
from pixart.train.one_step import OneStep, distribution_loss, one_step
from pixart.train.rivals import Rival, TwoPlayers, train_rivals


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    assert make_pairs(write_data(folder / "data"), folder / "pairs", fresh(), steps=3, guidance=2.0, seed=5) == 32
    return folder / "pairs"


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_student_generates_as_it_is_sampled():
    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(x) * t.view(-1, 1, 1, 1).to(x) / 500

    noise = normal(2, 4, 5, 5)
    assert torch.equal(one_step(network, noise), dmd(network, noise))


def test_the_gradient_is_the_official_one():
    """By scores s = -eps: (s_fake - s_real) sigma / alpha, over the mean distance to the teacher's latent."""
    x0, eps_real, eps_fake, noise = (normal(2, 4, 5, 5, seed=seed) for seed in range(4))
    x0.requires_grad_()
    a = torch.tensor([ALPHAS_CUMPROD[t] for t in (50, 900)], dtype=torch.float64).view(-1, 1, 1, 1)
    seen = (a.sqrt() * x0 + (1 - a).sqrt() * noise).detach()
    real, fake = ((seen - (1 - a).sqrt() * eps) / a.sqrt() for eps in (eps_real, eps_fake))
    distribution_loss(x0, real, fake).backward()
    coefficient = (eps_real - eps_fake) * (1 - a).sqrt() / a.sqrt()
    weight = 1 / ((x0 - real).abs().mean((1, 2, 3), keepdim=True) + 1e-5)
    torch.testing.assert_close(x0.grad, (2 * weight * coefficient / x0.numel()).detach(), rtol=1e-8, atol=1e-12)


def test_equal_scores_move_nothing():
    x0, real = normal(2, 4, 5, 5).requires_grad_(), normal(2, 4, 5, 5, seed=1)
    loss = distribution_loss(x0, real, real.clone())
    loss.backward()
    assert loss.item() == 0 and not x0.grad.any()


# -- pairs -------------------------------------------------------------------------------------------------------------

def test_a_pair_is_what_the_teacher_makes_from_its_noise(pairs):
    shard = Shard(shard_paths(pairs)[0])
    context, mask = (shard.tensors[name][4:6] for name in ("features", "mask"))
    null = PreparedFolder(pairs)
    padded = torch.zeros(4, 6, 8)
    padded[:2, :1], padded[2:] = null.null_context, context.float()
    keep = torch.zeros(4, 6, dtype=torch.bool)
    keep[:2, :1], keep[2:] = True, mask.bool()
    teacher = fresh()

    def model(x: Tensor, t: Tensor) -> Tensor:
        size = shard.tensors["size"][4:6].repeat(2, 1)
        return teacher(x, t, padded, keep, size, shard.tensors["aspect"][4:6].repeat(2))

    with torch.no_grad():
        want = dpm_solver_pp(guided(model, 2.0), shard.tensors["noise"][4:6].float(), 3)
    torch.testing.assert_close(shard.tensors["latents"][4:6].float(), want, rtol=2e-3, atol=2e-3)


def test_pairs_do_not_depend_on_when_they_are_made(pairs, tmp_path):
    """A shard that was lost is made again, the others stay."""
    for path in [pairs / "null.safetensors", *shard_paths(pairs)]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "prepare.json").write_bytes((pairs / "prepare.json").read_bytes())
    first, second = shard_paths(tmp_path)
    want, kept = Shard(first).tensors["latents"].clone(), second.stat().st_mtime_ns
    first.unlink()
    assert make_pairs(pairs.parent / "data", tmp_path, fresh(), steps=3, guidance=2.0, seed=5) == 16
    torch.testing.assert_close(Shard(first).tensors["latents"], want)
    assert second.stat().st_mtime_ns == kept


def test_shards_that_come_later_share_no_noise_with_those_before(pairs, tmp_path):
    """A second shard of the first bucket comes after pairs of the second bucket were made."""
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(pairs.parent / "data", data)
    make_pairs(data, out, fresh(), steps=3, seed=5)
    first, second = shard_paths(data)
    late = first.with_stem(f"{first.stem}-00001")
    late.write_bytes(first.read_bytes())
    make_pairs(data, out, fresh(), steps=3, seed=5)
    late, *early = ({tuple(row.flatten()[:64].tolist()) for row in Shard(out / path.name).tensors["noise"]}
                    for path in (late, first, second))
    assert len(late) == 16 and not late & set.union(*early)


def test_wrong_pairs_are_refused(pairs, tmp_path):
    data = pairs.parent / "data"
    with pytest.raises(ValueError, match="a folder of their own"):
        make_pairs(data, data, fresh())
    with pytest.raises(ValueError, match="begun with steps 3, now it is 4"):
        make_pairs(data, pairs, fresh(), steps=4, guidance=2.0, seed=5)
    with pytest.raises(FileNotFoundError, match="holds no prepared captions"):
        make_pairs(tmp_path, tmp_path / "out", fresh())
    from pixart.model.transformer import PixArtTransformer
    with pytest.raises(ValueError, match="have width 8, this teacher reads 16"):
        make_pairs(data, tmp_path / "out", PixArtTransformer(replace(TINY, caption_width=16)))


def test_pairs_of_other_captions_are_not_kept(pairs, tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(pairs.parent / "data", data)
    for file in shard_paths(data):
        shard = Shard(file)
        tensors = {name: value.clone() for name, value in shard.tensors.items()}
        write_shard(file, tensors, shard.metadata, [str(row) for row in range(len(shard))], ["old"] * len(shard))
    shutil.copytree(data, out)
    assert make_pairs(data, out, fresh(), steps=3) == 0
    write_shard(file, tensors, shard.metadata, [str(row) for row in range(len(shard))], ["new"] * len(shard))
    with pytest.raises(ValueError, match="made for other captions than those in the folder now"):
        make_pairs(data, out, fresh(), steps=3)


# -- training ----------------------------------------------------------------------------------------------------------

def test_noise_is_asked_for_where_the_regression_needs_it(pairs):
    plain = PreparedFolder(pairs.parent / "data")
    batch = plain.batch(generator_for(0, 0), 2)
    with pytest.raises(ValueError, match="no noise beside its latents"):
        OneStep(plain, fresh()).turn(fresh(), batch, generator_for(0, 0))
    turn = OneStep(plain, fresh(), regression=0).turn(fresh(), batch, generator_for(0, 0))
    assert turn.noise.shape == batch.latents.shape == (2, 4, *batch.latents.shape[2:])


def test_each_loss_has_gradients_in_its_own_player_alone(pairs):
    data, student, fake = PreparedFolder(pairs), fresh(), fresh()
    game = OneStep(data, fresh().requires_grad_(False), guidance=2.0)
    turn = game.turn(student, data.batch(generator_for(0, 0), 4), generator_for(0, 0))
    for name, mine, other in (("student", student, fake), ("fake", fake, student)):
        turn.loss(name, student, fake).backward()
        assert all(p.grad is None or not p.grad.any() for p in other.parameters())
        assert any(p.grad is not None and p.grad.any() for p in mine.parameters())
        mine.zero_grad()


def test_both_scores_look_at_timesteps_1_to_998(pairs):
    data = PreparedFolder(pairs)
    batch, game = data.batch(generator_for(0, 0), 32), OneStep(data, fresh())
    turns = [game.turn(fresh(), batch, generator_for(0, seed)).drawn for seed in range(150)]
    for name in ("student", "fake"):
        t = torch.cat([turn[name][0] for turn in turns])
        assert (t.min(), t.max()) == (1, 998)


def test_the_regression_is_the_distance_to_half_of_the_pairs(pairs):
    data, student = PreparedFolder(pairs), fresh()
    batch = data.batch(generator_for(0, 0), 4)
    losses = [OneStep(data, fresh().requires_grad_(False), regression=weight).turn(
        student, batch, generator_for(0, 0)).loss("student", student, fresh()).item() for weight in (0.0, 0.25)]
    with torch.no_grad():
        x0 = one_step(lambda x, t: student(x, t, **batch.conditions()), batch.noise)
    assert losses[1] - losses[0] == pytest.approx(0.25 * ((x0 - batch.latents)[:2] ** 2).mean().item(), rel=1e-3)


@pytest.mark.parametrize("part", [1, 2])
def test_a_step_in_parts_is_the_step_as_a_whole(pairs, part):
    """The regression sees half of the step's images, not half of each part."""
    data, game = PreparedFolder(pairs), OneStep(PreparedFolder(pairs), fresh().requires_grad_(False), guidance=2.0)

    def gradient(batch: int) -> Tensor:
        student, fake = fresh(), fresh()
        for first in range(0, 4, batch):
            generator = generator_for(0, 0, slice(first, first + batch), 4)
            turn = game.turn(student, data.batch(generator, batch), generator)
            (turn.loss("student", student, fake) * batch / 4).backward()
        return torch.cat([each.grad.flatten() for each in student.parameters() if each.grad is not None])
    torch.testing.assert_close(gradient(part), gradient(4), rtol=1e-3, atol=1e-6)


def test_resumed_equals_uninterrupted_to_the_bit(pairs, tmp_path):
    def run(folder: Path, steps: int) -> dict:
        data, student = PreparedFolder(pairs), fresh()
        game = OneStep(data, fresh().requires_grad_(False), guidance=2.0)
        train_rivals(student, Rival(fresh(), 3e-4, 10.0), game, data, replace(SHORT, steps=steps), folder)
        return student.state_dict()

    whole = run(tmp_path / "whole", 6)
    run(tmp_path / "parts", 3)
    assert all(torch.equal(a, b) for a, b in zip(run(tmp_path / "parts", 6).values(), whole.values()))


def test_pairs_of_several_files_are_learned_from_in_bf16(pairs, tmp_path):
    """What lies in float16 is joined outside autocast, which on a CPU knows bfloat16 alone."""
    for path in pairs.iterdir():
        shutil.copy(path, tmp_path / path.name)
        if path.name.startswith("bucket"):
            shutil.copy(path, tmp_path / f"{path.stem}-00001.safetensors")
    data, student = PreparedFolder(tmp_path), fresh()
    assert all(len(shards) > 1 for shards in data.buckets.values())
    game = OneStep(data, fresh().requires_grad_(False))
    training = TwoPlayers(student, game, data, replace(SHORT, precision="bf16", batch=8), rival=Rival(fresh(), 1e-4))
    training.step(0)
    assert training.readings.read()[-1].loss > 0


def test_with_the_regression_alone_it_learns_the_pairs(pairs):
    """A large weight drowns the other loss."""
    data, student = PreparedFolder(pairs), fresh()
    game = OneStep(data, fresh().requires_grad_(False), guidance=2.0, regression=100.0, share=1.0)
    training = TwoPlayers(student, game, data, replace(SHORT, steps=80, learning_rate=3e-3),
                          rival=Rival(fresh(), 1e-4))
    for number in range(80):
        training.step(number)
    found = [outcome.loss for outcome in training.readings.read()]
    assert sum(found[-10:]) < 0.8 * sum(found[:10])
