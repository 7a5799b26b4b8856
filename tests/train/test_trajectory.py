"""Trajectory distribution matching: its statements, and the loop of two players that trains by it."""
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from train.training_data import SHORT, fresh, write_data

from pixart.sampling.schedule import ALPHAS_CUMPROD, add_noise, predicted_x0
from pixart.sampling.tdm import grid, tdm
from pixart.train import loop
from pixart.train.data import PreparedFolder
from pixart.train.draws import generator_for
from pixart.train.jobs import matched_lora
from pixart.train.method_settings import TdmMethod
from pixart.train.rivals import Rival, TwoPlayers, train_rivals
from pixart.train.settings import OutputSettings
from pixart.train.state import read_state
from pixart.train.trajectory import (
    Trajectory,
    draw_part,
    fake_loss,
    importance,
    matching_loss,
    mixed_noise,
    renoise,
    rollout,
)

SIGMA = [math.sqrt(1 - a) for a in ALPHAS_CUMPROD]
ALPHA = [math.sqrt(a) for a in ALPHAS_CUMPROD]


@pytest.fixture
def data(tmp_path: Path) -> PreparedFolder:
    return PreparedFolder(write_data(tmp_path / "data"))


def network(x: Tensor, t: Tensor, rows: Tensor | None = None) -> Tensor:
    return torch.sin(1.3 * x) + 0.2 * torch.cos(x.roll(1, 3) + t.view(-1, 1, 1, 1).to(x) / 300)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- what a step looks at ----------------------------------------------------------------------------------------------

def test_the_rollout_is_the_sampler_cut_where_a_part_begins():
    noise, times = normal(6, 4, 6, 5), grid(4, 900)
    seen: list[Tensor] = []
    tdm(network, noise, times, lambda step, x, x0: seen.append(x))
    part, other = torch.tensor([0, 1, 2, 3, 0, 2]), torch.tensor([3, 0, 2, 1, 0, 1])
    made = rollout(network, noise, times, part, other)
    for row in range(6):
        torch.testing.assert_close(made.x[row], seen[part[row]][row], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(made.other_x[row], seen[other[row]][row], rtol=1e-12, atol=1e-12)
        now = torch.tensor([float(times[part[row]])])
        torch.testing.assert_close(made.eps[row], network(seen[part[row]][row][None], now)[0], rtol=1e-12, atol=1e-12)


def test_separate_parts_have_nothing_in_common_and_end_where_the_next_begins():
    found: dict[int, list[tuple[int, int, int]]] = {}
    for seed in range(40):
        part = draw_part(normal(64, 1, 2, 2), 4, 900, True, generator_for(0, seed))
        for row in zip(*(values.tolist() for values in part[:4])):
            found.setdefault(row[0], []).append(row[1:])
    starts = {number: {row[0] for row in rows} for number, rows in found.items()}
    assert starts == {0: {899}, 1: {674}, 2: {449}, 3: {224}}
    ends = {number: {row[1] for row in rows} for number, rows in found.items()}
    assert ends == {0: {675}, 1: {450}, 2: {225}, 3: {0}}
    reached = {number: [row[2] for row in rows] for number, rows in found.items()}
    assert all(max(20, min(ends[n])) <= min(reached[n]) and max(reached[n]) < min(starts[n]) - 10 for n in reached)
    assert min(reached[3]) < 25 and max(reached[0]) > 880
    assert all(min(reached[n]) > max(reached[n + 1]) for n in range(3)), "disjoint"


def test_without_separation_any_noise_above_the_end_is_looked_at():
    part = draw_part(normal(4000, 1, 2, 2), 4, 900, False, generator_for(0, 0))
    last = part.noised[part.number == 3]
    assert last.min() < 30 and last.max() > 850 and part.noised.max() < 890


def test_renoising_to_where_one_is_changes_nothing():
    x, t = normal(3, 4, 5, 5), torch.tensor([0, 225, 675])
    assert torch.equal(renoise(x, normal(3, 4, 5, 5, seed=1), t, t), x)


def test_renoised_is_the_clean_latent_with_the_mixed_noise():
    x0, eps, noise = normal(3, 4, 5, 5), normal(3, 4, 5, 5, seed=1), normal(3, 4, 5, 5, seed=2)
    here, there = torch.tensor([0, 225, 675]), torch.tensor([20, 400, 880])
    got = renoise(add_noise(x0, eps, here), noise, here, there)
    torch.testing.assert_close(got, add_noise(x0, mixed_noise(eps, noise, here, there), there), rtol=1e-10, atol=1e-10)


def test_renoising_by_the_statement_of_the_paper():
    x, noise = normal(1, 4, 5, 5), normal(1, 4, 5, 5, seed=1)
    got = renoise(x, noise, torch.tensor([225]), torch.tensor([400]))
    ratio = ALPHA[400] / ALPHA[225]
    torch.testing.assert_close(got, ratio * x + math.sqrt(SIGMA[400] ** 2 - (ratio * SIGMA[225]) ** 2) * noise,
                               rtol=1e-10, atol=1e-10)


def test_fresh_noise_alone_has_importance_one():
    """Where nearly no noise is at `here`, the mixture is the fresh noise."""
    eps, noise = normal(2, 4, 8, 8), normal(2, 4, 8, 8, seed=1)
    zero, high = torch.tensor([0, 0]), torch.tensor([400, 880])
    got = importance(eps, noise, zero, high)
    torch.testing.assert_close(got, torch.ones(2, dtype=torch.float64), rtol=2e-3, atol=0)


def test_importance_is_the_ratio_of_the_densities_a_pixel():
    eps, noise = normal(1, 4, 8, 8), normal(1, 4, 8, 8, seed=1)
    here, there = torch.tensor([450]), torch.tensor([600])
    mixed = mixed_noise(eps, noise, here, there)
    want = math.exp(-0.5 * (mixed ** 2).mean().item()) / math.exp(-0.5 * (noise ** 2).mean().item())
    assert importance(eps, noise, here, there).item() == pytest.approx(want, rel=1e-12)


# -- losses ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("huber", ["element", "vector", "none"])
def test_equal_networks_move_nothing(huber):
    """Fake score and unguided teacher agree: the target is the student's own latent."""
    x0, real = normal(2, 4, 5, 5).requires_grad_(), normal(2, 4, 5, 5, seed=1)
    loss = matching_loss(x0, real, real.clone(), huber)
    loss.backward()
    assert loss.item() == 0 and not x0.grad.any()


@pytest.mark.parametrize("huber", ["element", "vector", "none"])
def test_the_student_is_moved_from_the_fake_score_to_the_teacher(huber):
    x0, real, fake = normal(2, 4, 5, 5).requires_grad_(), normal(2, 4, 5, 5, seed=1), normal(2, 4, 5, 5, seed=2)
    matching_loss(x0, real, fake, huber).backward()
    assert torch.equal(-x0.grad.sign(), (real - fake).sign())


def test_losses_are_those_of_the_statement():
    x0, real, fake = (normal(2, 4, 5, 5, seed=seed) for seed in range(3))
    distance, size = fake - real, (x0 - real).abs().mean((1, 2, 3))
    want = ((((distance ** 2 + 1e-6).sqrt() - 1e-3).mean((1, 2, 3))) / size).mean()
    torch.testing.assert_close(matching_loss(x0, real, fake), want)
    d = distance[0].numel()
    norm = (distance ** 2).sum((1, 2, 3))
    c = 0.00054 * math.sqrt(d)
    want = ((((norm + c ** 2).sqrt() - c) / math.sqrt(d)) / size).mean()
    torch.testing.assert_close(matching_loss(x0, real, fake, "vector"), want)
    torch.testing.assert_close(matching_loss(x0, real, fake, "none"), ((distance ** 2).mean((1, 2, 3)) / size).mean())


def test_the_fake_score_is_weighed_by_min_snr_and_importance():
    x0, x, t = normal(2, 4, 5, 5), normal(2, 4, 5, 5, seed=1), torch.tensor([30, 700])
    weight = torch.tensor([2.0, 0.5], dtype=torch.float64)
    want = 0.0
    for row, time in enumerate(t.tolist()):
        guess = (x[row] - SIGMA[time] * network(x[row:row + 1], t[row:row + 1])[0]) / ALPHA[time]
        snr = min(5, ALPHAS_CUMPROD[time] / (1 - ALPHAS_CUMPROD[time]))
        want += snr * weight[row] * ((guess - x0[row]) ** 2).mean() / 2
    torch.testing.assert_close(fake_loss(network, x0, x, t, weight), want)


def test_the_teacher_is_guided_by_the_ordinary_scale(data):
    batch = data.batch(generator_for(0, 0), 3)
    teacher = fresh().requires_grad_(False)
    x, t = normal(3, 4, *batch.latents.shape[-2:]).float(), torch.tensor([100, 500, 880])
    silent = data.without_caption(batch)
    cond, uncond = (teacher(x, t.float(), **given.conditions()) for given in (batch, silent))
    assert not torch.allclose(cond, uncond, rtol=0.1)
    asked: list[int] = []
    teacher.register_forward_hook(lambda module, given, output: asked.append(len(output)))
    for scale in (1.0, 2.5):
        want = predicted_x0(x, uncond + scale * (cond - uncond), t)
        got = Trajectory(data, teacher, guidance=scale).real(x, t, batch)
        torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)
    assert asked == [3, 6]              # no guidance is half the work


@pytest.mark.parametrize("weighed", [True, False])
def test_the_fake_score_is_taught_where_the_step_of_the_student_led(data, weighed):
    """Its images are noised from the end of their part on, and weighed by the noise that they have there."""
    student, rival, game = players(data, importance=weighed)
    batch = data.batch(generator_for(0, 0), 4)
    turn = game.turn(student, batch, generator_for(0, 0))
    (_, start, end, noised, noise), made = turn.parts["fake"], turn.rollout
    x0 = predicted_x0(made.x, made.eps, start)
    total = mixed_noise(made.eps, noise, end, noised)
    weight = (0.5 * ((noise ** 2).mean((1, 2, 3)) - (total ** 2).mean((1, 2, 3)))).exp() if weighed else torch.ones(4)
    want = fake_loss(lambda x, t: rival.model(x, t, **batch.conditions()), x0, add_noise(x0, total, noised), noised,
                     weight)
    torch.testing.assert_close(turn.loss("fake", student, rival.model), want)


# -- the loop ----------------------------------------------------------------------------------------------------------

def players(data: PreparedFolder, **changes: object) -> tuple[nn.Module, Rival, Trajectory]:
    return fresh(), Rival(fresh(), 3e-4), Trajectory(data, fresh().requires_grad_(False), guidance=2.0, **changes)


def test_a_student_that_is_its_unguided_teacher_stays_where_it_is(data):
    """Both scores are the same network at the start, so the student's first gradient is zero; the fake score's not."""
    student, rival, game = players(data)
    training = TwoPlayers(student, replace(game, guidance=1.0, teacher=rival.model), data,
                          replace(SHORT, learning_rate=1e-3), rival=replace(rival, learning_rate=1e-12))
    training.step(0)
    outcome, = training.readings.read()
    assert outcome.loss < 1e-6 and outcome.rival > 1e-3


def test_each_loss_has_gradients_in_its_own_player_alone(data):
    student, rival, game = players(data)
    make = torch.Generator().manual_seed(2)
    for network in (student, rival.model, game.teacher):        # a fresh network does not look at captions yet
        for parameter in network.parameters():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=make)
    batch, generator = data.batch(generator_for(0, 0), 4), generator_for(0, 0)
    turn = game.turn(student, batch, generator)
    for name, mine, other in (("fake", rival.model, student), ("student", student, rival.model)):
        turn.loss(name, student, rival.model).backward()
        assert all(p.grad is None or not p.grad.any() for p in other.parameters())
        assert any(p.grad is not None and p.grad.any() for p in mine.parameters())
        mine.zero_grad()


class Killed(Exception):
    """Raised in a report: nothing is saved, as when the process dies there."""


@pytest.mark.parametrize("changes", [{}, {"accumulation": 2, "precision": "bf16"}, {"optimizer": "adamw8bit"}], ids=str)
def test_resumed_equals_uninterrupted_to_the_bit(data, tmp_path, changes):
    config = replace(SHORT, betas=(0.0, 0.95), **changes)
    first, second, third = (players(data) for _ in range(3))

    def run(who: tuple[nn.Module, Rival, Trajectory], folder: str, **more: object) -> nn.Module:
        return train_rivals(*who, data, config, tmp_path / folder, **more)[config.ema]

    def kill(step: int, loss: float) -> None:
        raise Killed            # after step 4: the state at hand is that of step 3

    whole = run(first, "whole")
    with pytest.raises(Killed):
        run(second, "parts", report=kill)
    assert read_state(tmp_path / "parts" / loop.STATE)["step"] == 3
    again = run(third, "parts")
    for one, other in ((again, whole), (third[1].model, first[1].model)):
        assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values()))


def test_another_rate_of_the_fake_score_is_another_training(data, tmp_path):
    student, rival, game = players(data)
    train_rivals(student, rival, game, data, replace(SHORT, steps=1), tmp_path)
    with pytest.raises(ValueError, match="fake_learning_rate was 0.0003 and is now 0.001"):
        train_rivals(student, replace(rival, learning_rate=1e-3), game, data, replace(SHORT, steps=2), tmp_path)


def test_the_fake_score_learns_at_its_own_constant_rate_and_its_gradient_is_cut_alone(data):
    student, rival, game = players(data)
    rival = replace(rival, clip=1e-3)
    config = replace(SHORT, schedule="cosine", warmup=5, clip=math.inf)
    assert [rival.config(config).rate_at(step) for step in range(config.steps)] == [3e-4] * config.steps
    norms = {}

    class Watched(TwoPlayers):
        def advance(self, steppers, config, number, norm):
            parts = [p.grad.norm() for stepper in steppers for group in stepper.param_groups for p in group["params"]]
            norms[config.learning_rate] = norm.item(), torch.stack(parts).norm().item()
            super().advance(steppers, config, number, norm)
    Watched(student, game, data, config, rival=rival).step(0)
    (before, after), (free, same) = norms[rival.learning_rate], norms[config.learning_rate]
    assert before > 1e-3 and after == pytest.approx(1e-3, rel=1e-2) and same == pytest.approx(free, rel=1e-4)


def test_accumulation_has_the_gradients_of_the_whole_batch(data):
    losses = []
    for config in (replace(SHORT, batch=8), replace(SHORT, batch=2, accumulation=4)):
        student, rival, game = players(data)
        training = TwoPlayers(student, game, data, config, rival=rival)
        training.step(3)
        losses.append(training.readings.read()[0])
    for whole, split in zip(*(outcome[1:] for outcome in losses)):
        assert split == pytest.approx(whole, rel=1e-3)


def test_adapters_share_one_base_with_their_teacher(data, tmp_path):
    method = TdmMethod(guidance=2.0, fake_learning_rate=1e-3, rank=2)
    base = fresh()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    job = matched_lora(base, method, data, OutputSettings(tmp_path, tmp_path / "tdm.safetensors"), 0)
    assert job.rival is not None
    trained = [name for name, p in job.rival.model.named_parameters() if p.requires_grad]
    assert trained and all(".lora_" in name for name in trained)
    shared = dict(job.model.named_parameters())
    assert all(p is shared[name] for name, p in job.rival.model.named_parameters() if not p.requires_grad)
    average = train_rivals(job.model, job.rival, job.objective, data, SHORT, tmp_path / "run", settings=job.facts)
    for name, value in job.model.state_dict().items():
        plain = name.replace(".base_layer", "")
        if plain in before:
            assert torch.equal(value, before[plain]), name
    assert job.save(average[SHORT.ema]).exists()


def test_the_fake_score_learns(data):
    """It comes to know the student: its loss falls while the student stands still."""
    student, rival, game = players(data)
    training = TwoPlayers(student, game, data, replace(SHORT, steps=60, learning_rate=1e-12, warmup=0),
                          rival=replace(rival, learning_rate=3e-3))
    for number in range(60):
        training.step(number)
    found = [outcome.rival for outcome in training.readings.read()]
    assert sum(found[-15:]) < 0.95 * sum(found[:15])


def test_partial_rows_are_asked_of_the_student(data):
    """Each image with its own caption, however few of the batch go on."""
    seen = []

    def model(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        seen.append(rows.tolist())
        return network(x, t)

    rollout(partial(model), normal(3, 4, 4, 4), grid(4, 900), torch.tensor([0, 2, 0]), torch.tensor([0, 0, 1]))
    assert seen == [[0, 1, 2], [1], [1], [0]]
