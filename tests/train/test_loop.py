"""The training loop: it learns, splits steps without changing them, averages and reports."""
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from train.training_data import SHORT, fresh, write_data

from pixart.model.controlnet import Controlled, PixArtControlNet
from pixart.train import loop
from pixart.train.average import averaged_copy, update_average
from pixart.train.data import PreparedFolder
from pixart.train.draws import draw_rows, generator_for
from pixart.train.objectives import Consistency, ControlDiffusion, Diffusion
from pixart.train.readings import StepOutcome
from pixart.train.report import Pace, Record, TensorBoard
from pixart.train.state import read_state


@pytest.fixture
def data(tmp_path):
    return PreparedFolder(write_data(tmp_path / "data"))


def assert_close(first: nn.Module, second: nn.Module, **tolerance: float) -> None:
    for name, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value, msg=name, **tolerance)


def test_interrupt_saves_the_last_step(data, tmp_path):
    def stop(step: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.train(fresh(), Diffusion(data), data, replace(SHORT, save_every=100), tmp_path / "run", report=stop)
    assert read_state(tmp_path / "run" / loop.STATE)["step"] == 4


def test_a_stop_at_the_last_step_is_the_end_and_the_same_again_changes_nothing(data, tmp_path):
    def stop(record: Record, average: nn.Module) -> None:
        if record.step == SHORT.steps:
            raise KeyboardInterrupt

    first = loop.train(fresh(), Diffusion(data), data, SHORT, tmp_path / "run", watch=[stop])
    again = loop.train(fresh(), Diffusion(data), data, SHORT, tmp_path / "run")
    assert_close(first, again, rtol=0, atol=0)


def test_the_rate_rises_stays_and_falls_to_zero_in_even_steps():
    config = replace(SHORT, steps=10, learning_rate=1.0, warmup=2, cooldown=4)
    assert [config.rate_at(step) for step in range(10)] == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]


def test_the_time_left_is_that_of_this_run_and_a_line_tells_the_losses_since_the_last(monkeypatch):
    clock = iter([100.0, 103.0, 106.0])
    monkeypatch.setattr("pixart.train.report.time.perf_counter", lambda: next(clock))
    pace = Pace(SHORT, start=4)             # steps 5 and 6 of 8, three seconds each
    first = pace.record(5, [StepOutcome(5, 2.0, 1.0)])
    assert (first.seconds, first.left, pace.line(first)) == (3.0, 9.0, 2.0)
    second = pace.record(6, [StepOutcome(6, 4.0, 1.0)])
    assert (second.seconds, second.left, pace.line(second)) == (3.0, 6.0, 4.0)


def distillation(data: PreparedFolder) -> Consistency:
    """With a wide Huber: the usual narrow one has almost the slope of |x|, which rounding turns around near zero."""
    return Consistency(data, fresh().requires_grad_(False), huber_c=1.0)


@pytest.mark.parametrize("objective", [Diffusion, distillation])
def test_accumulation_has_the_gradients_of_the_whole_batch(data, objective):
    """The same images, noise, timesteps and dropped captions, in parts of 2 instead of 8 at once."""
    whole, parts = fresh(), fresh()
    loss = loop.Training(whole, objective(data), data, replace(SHORT, batch=8)).gradients(5)
    split = loop.Training(parts, objective(data), data, replace(SHORT, batch=2, accumulation=4)).gradients(5)
    torch.testing.assert_close(split, loss, rtol=1e-6, atol=0)
    largest = max(p.grad.abs().max() for p in whole.parameters())
    for (name, a), b in zip(whole.named_parameters(), parts.parameters()):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-5 * largest.item(), msg=name)


def test_draws_of_all_processes_make_up_those_of_one():
    whole = draw_rows(torch.randn, (6, 3), generator_for(1, 2))
    parts = [draw_rows(torch.randn, (2, 3), generator_for(1, 2, slice(i, i + 2), 6)) for i in (0, 2, 4)]
    assert torch.equal(torch.cat(parts), whole)


def test_neither_steps_nor_seeds_share_their_draws():
    drawn = {tuple(draw_rows(torch.randn, (2,), generator_for(seed, step)).tolist())
             for seed in (-1, 0, 1, 2) for step in range(50)}
    assert len(drawn) == 200


def test_recomputing_activations_changes_no_gradient(data):
    plain, thrifty = fresh(), fresh()
    loop.Training(plain, Diffusion(data), data, SHORT).gradients(0)
    training = loop.Training(thrifty, Diffusion(data), data, replace(SHORT, recompute=True))
    training.gradients(0)
    assert thrifty.recompute
    training.finish()
    assert not thrifty.recompute            # left as it came
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), thrifty.parameters()))


def test_only_what_is_trained_is_kept_and_averaged(data, tmp_path):
    base = fresh().requires_grad_(False)
    model = Controlled(base, PixArtControlNet.copy_of(base, 1))
    before = {name: value.clone() for name, value in base.state_dict().items()}
    average = loop.train(model, ControlDiffusion(data), data, SHORT, tmp_path / "run")
    state = read_state(tmp_path / "run" / loop.STATE)
    assert all(name.startswith("control.") for name in state["model"] | state["average"])
    assert all(mine is theirs for mine, theirs in zip(average.base.parameters(), base.parameters()))
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert not torch.equal(average.control.controlnet[0].after_proj.weight, torch.zeros(48, 48))


def test_watching_does_not_disturb(data, tmp_path):
    """Watchers may generate images: whatever they take from torch's own noise, the training is the same to the bit."""
    seen = []

    def watch(record: Record, average: nn.Module) -> None:
        with torch.inference_mode():
            seen.append((record, average(torch.randn(1, 4, 8, 8), torch.zeros(1), torch.randn(1, 6, 8))))

    quiet = loop.train(fresh(), Diffusion(data), data, SHORT, tmp_path / "quiet")
    watched = loop.train(fresh(), Diffusion(data), data, SHORT, tmp_path / "watched", watch=[watch])
    assert_close(quiet, watched, rtol=0, atol=0)
    assert [record.step for record, _ in seen] == list(range(1, 9))
    assert seen[-1][0].left == 0 and seen[0][0].rate == SHORT.learning_rate / 2


def test_tensorboard_drops_what_a_resumed_run_repeats(data, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for steps in (5, 8):
        board = TensorBoard(tmp_path / "board")
        (tmp_path / "run" / loop.STATE).unlink(missing_ok=True)
        loop.train(fresh(), Diffusion(data), data, replace(SHORT, steps=steps), tmp_path / "run", watch=[board])
    found = events.EventAccumulator(str(tmp_path / "board"))
    found.Reload()
    assert sorted(found.Tags()["scalars"]) == ["gradient norm", "learning rate", "loss", "seconds a step"]
    assert [event.step for event in found.Scalars("loss")] == list(range(1, 9))


def test_half_precision_weights_are_not_trained(data, tmp_path):
    with pytest.raises(ValueError, match="trained tensors are 16-bit, the first is x_embedder"):
        loop.train(fresh().bfloat16(), Diffusion(data), data, SHORT, tmp_path / "run")


def test_frozen_weights_of_16_bits_are_refused_where_nothing_mixes_them(data, tmp_path):
    base = fresh().requires_grad_(False)
    model = Controlled(base.bfloat16(), PixArtControlNet.copy_of(base, 1).float())
    with pytest.raises(ValueError, match='precision is "no" but the frozen weights are 16-bit'):
        loop.train(model, ControlDiffusion(data), data, SHORT, tmp_path / "run")


def test_a_frozen_model_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match="no parameter is trainable"):
        loop.train(fresh().requires_grad_(False), Diffusion(data), data, SHORT, tmp_path / "run")


@pytest.mark.parametrize(("change", "message"), [
    ({"steps": 0}, "must be positive"), ({"ema": 1.0}, "moving average decay is 1.0"), ({"clip": 0.0}, "clip is 0.0"),
    ({"learning_rate": math.nan}, "learning rate nan"), ({"clip": math.nan}, "clip is nan"),
    ({"weight_decay": -1.0}, "weight_decay is -1.0"), ({"epsilon": math.inf}, "epsilon is inf"),
    ({"betas": (0.9, 1.0)}, r"betas are \(0.9, 1.0\)"), ({"ema": math.nan}, "moving average decay is nan"),
    ({"optimizer": "sgd"}, "use adamw, adamw8bit, came, muon"), ({"precision": "fp8"}, "use auto, no, bf16, fp16"),
    ({"seed": 1 << 60}, "seed is 1152921504606846976"),
    ({"accumulation": 0}, "accumulation is 0")], ids=str)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SHORT, **change)


def test_diffusion_loss_falls(data, tmp_path):
    seen = []
    loop.train(fresh(), Diffusion(data), data, replace(SHORT, steps=150, learning_rate=3e-3, log_every=50),
               tmp_path / "run", report=lambda step, loss: seen.append(loss))
    assert seen[-1] < 0.9 * seen[0]


def test_student_of_an_unguided_identical_teacher_has_a_small_loss(data):
    """At guidance 0 and equal networks only the DDIM step separates prediction and target."""
    model, batch = fresh(), data.batch(torch.Generator().manual_seed(3), 4)
    near, usual, far = (Consistency(data, model, guidance=w)(model, model, batch,
                                                             torch.Generator().manual_seed(5)).item()
                        for w in (0.0, 4.5, 100.0))
    assert 0 < near < usual < 0.3 * far


def test_dropped_captions_become_the_null_caption(data):
    batch = data.batch(torch.Generator().manual_seed(0), 3)
    changed = data.without_caption(batch, torch.tensor([True, False, True]))
    assert changed.mask.sum(1).tolist() == [1, 4, 1]
    assert torch.equal(changed.context[0, 0], data.null_context[0])
    assert torch.equal(changed.context[1], batch.context[1])


def test_moving_average_moves_by_one_minus_decay():
    model, average = fresh(), fresh()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    before = [p.clone() for p in average.parameters()]
    update_average(average, model, 0.95)
    for old, new in zip(before, average.parameters()):
        torch.testing.assert_close(new, old + 0.05)


def test_without_averaging_the_average_is_the_model():
    model = fresh()
    average = averaged_copy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.7)
    update_average(average, model, 0.0)
    assert_close(model, average, rtol=0, atol=0)
    assert not any(p.requires_grad for p in average.parameters()) and not average.training


def test_folder_without_data_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="bucket-.*safetensors"):
        PreparedFolder(tmp_path)
