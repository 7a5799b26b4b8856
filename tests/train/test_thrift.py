"""What makes a step cheap: no waiting for the device, several averages, data made on the fly, compiled blocks."""
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from train.training_data import SHORT, TINY, fresh, write_data

from pixart.model.compiled import blocks_of, compile_blocks, forget_compiled
from pixart.model.controlnet import Controlled, PixArtControlNet
from pixart.train import loop
from pixart.train.data import Batch, PreparedFolder
from pixart.train.draws import draw_rows, generator_for
from pixart.train.objectives import Consistency, ControlDiffusion, Diffusion
from pixart.train.readings import Readings, StepOutcome
from pixart.train.report import Record
from pixart.train.state import read_state, write_state
from pixart.train.timesteps import Timesteps


@pytest.fixture
def data(tmp_path):
    return PreparedFolder(write_data(tmp_path / "data"))


class Waits(TorchDispatchMode):
    """Counts what makes a program wait for a GPU, numbers that are read from tensors, and copies to another device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.copies = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            assert result.device.type == "cpu" or result.dtype != torch.float64, "Apple GPUs have no float64"
            self.copies += result.device != args[0].device
        return result


class Endless:
    """Images made as they are needed, on the generator's device; no length, no files."""

    def batch(self, generator: torch.Generator, size: int) -> Batch:
        latents = draw_rows(torch.randn, (size, 4, 8, 8), generator)
        context = draw_rows(torch.randn, (size, 6, 8), generator)
        return Batch(latents, context, torch.ones(size, 6, dtype=torch.bool), torch.full((size, 2), 64.0),
                     torch.ones(size))

    def without_caption(self, batch: Batch, rows: torch.Tensor | None = None) -> Batch:
        rows = torch.ones(len(batch.mask), dtype=torch.bool) if rows is None else rows
        return replace(batch, context=torch.where(rows[:, None, None], 0.0, batch.context))


@pytest.mark.parametrize("changes", [
    {}, {"optimizer": "muon", "ema_decays": (0.5,), "random_on_device": True}], ids=str)
def test_a_step_reads_no_number_from_the_device(changes, monkeypatch):
    """On a GPU; here the loop is told that it trains on one, so that it leaves out what it does on a CPU alone."""
    data = Endless()
    objective = Diffusion(data, timesteps=Timesteps("laplace", stratified=True), weighting="v")
    training = loop.Training(fresh(), objective, data, replace(SHORT, **changes))
    training.step(0)
    monkeypatch.setattr(loop.Training, "waits", False)
    with Waits() as waits:
        training.step(1)
    ours = waits.count
    with Waits() as waits:                              # torch's optimizers keep their step counts on the CPU
        for stepper in training.steppers:
            for group in stepper.param_groups:
                for parameter in group["params"]:
                    parameter.grad = torch.zeros_like(parameter)
            stepper.step()
    assert ours == waits.count
    assert len(training.readings.read()) == 2


@pytest.mark.parametrize(("kind", "drawn"), [("diffusion", 3), ("control", 3), ("lcm", 3)])
def test_only_the_batch_and_what_is_drawn_on_the_cpu_is_copied_to_the_device(data, kind, drawn):
    """The meta device stands for a GPU: timesteps, dropped captions (w for lcm) and noise; tables are there by then."""
    device = torch.device("meta")
    model = fresh().to(device)
    timesteps = Timesteps("range", stratified=True)
    objective = {"diffusion": Diffusion(data, timesteps=timesteps, weighting="v"),
                 "control": ControlDiffusion(data, timesteps=timesteps, weighting="min-snr"),
                 "lcm": Consistency(data, fresh().to(device), guidance_max=6.0)}[kind]
    if kind == "control":
        model = Controlled(model, PixArtControlNet.copy_of(model, 1)).to(device)
    batch = data.batch(torch.Generator().manual_seed(0), 4).to(device)
    counts = []
    for step in range(3):
        with Waits() as waits:
            objective(model, model, batch, generator_for(0, step)).backward()
        counts.append((waits.copies, waits.count))
    assert counts[0][0] > drawn and counts[1:] == [(drawn, 0)] * 2


def test_readings_come_in_order_and_a_nan_is_found_before_anything_is_saved(data, tmp_path):
    readings = Readings()
    readings.add(1, torch.tensor(2.0), torch.tensor(3.0))
    readings.add(2, torch.tensor(4.0), torch.tensor(5.0))
    assert readings.read() == [StepOutcome(1, 2.0, 3.0), StepOutcome(2, 4.0, 5.0)] and readings.read() == []
    readings.add(3, torch.tensor(1.0), torch.tensor(math.inf))
    with pytest.raises(FloatingPointError, match="gradient became inf at step 2; nothing was saved since"):
        readings.read()


def test_where_reading_makes_wait_a_nan_is_found_at_the_next_line_and_the_last_state_is_kept(data, tmp_path,
                                                                                            monkeypatch):
    monkeypatch.setattr(loop.Training, "waits", False)
    calls = []

    def objective(model: nn.Module, average: nn.Module, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        calls.append(batch)
        return Diffusion(data)(model, average, batch, generator) * (float("nan") if len(calls) == 5 else 1.0)

    with pytest.raises(FloatingPointError, match="loss became nan at step 4; nothing was saved since"):
        loop.train(fresh(), objective, data, replace(SHORT, save_every=3, log_every=100), tmp_path / "run")
    assert len(calls) == 6 and read_state(tmp_path / "run" / loop.STATE)["step"] == 3


def test_a_nan_that_nobody_read_yet_is_not_saved_by_who_stops(data, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.Training, "waits", False)

    def objective(model: nn.Module, average: nn.Module, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        return Diffusion(data)(model, average, batch, generator) * (float("nan") if generator.step == 1 else 1.0)

    def stop(record: Record, average: nn.Module) -> None:
        if record.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(FloatingPointError, match="loss became nan at step 1"):
        loop.train(fresh(), objective, data, replace(SHORT, save_every=100, log_every=100), tmp_path / "run",
                   watch=[stop])
    assert not (tmp_path / "run" / loop.STATE).exists()


def test_late_readings_lose_no_loss(data, tmp_path, monkeypatch):
    """The lines of the log and what watchers get are the same, only later."""
    def told(folder: str) -> tuple[list[tuple[int, float]], list[StepOutcome]]:
        lines, seen = [], []
        loop.train(fresh(), Diffusion(data), data, SHORT, tmp_path / folder,
                   report=lambda step, loss: lines.append((step, loss)),
                   watch=[lambda record, average: seen.extend(record.known)])
        return lines, seen

    at_once = told("at once")
    monkeypatch.setattr(loop.Training, "waits", False)
    assert told("late") == at_once and [outcome.step for outcome in at_once[1]] == list(range(1, 9))


def test_further_averages_are_those_of_trainings_with_that_decay_and_go_on(data, tmp_path):
    several = replace(SHORT, ema=0.9, ema_decays=(0.5, 0.0))
    averages = loop.train_averages(fresh(), Diffusion(data), data, several, tmp_path / "run")
    assert list(averages) == [0.9, 0.5, 0.0]
    for decay, average in averages.items():
        alone = loop.train(fresh(), Diffusion(data), data, replace(SHORT, ema=decay), tmp_path / str(decay))
        assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), average.parameters())), decay
    loop.train(fresh(), Diffusion(data), data, replace(several, steps=5), tmp_path / "parts")
    resumed = loop.train_averages(fresh(), Diffusion(data), data, several, tmp_path / "parts")
    for decay, average in averages.items():
        assert all(torch.equal(a, b) for a, b in zip(resumed[decay].parameters(), average.parameters())), decay


def test_data_may_be_made_on_the_fly(tmp_path):
    data = Endless()
    whole = loop.train(fresh(), Diffusion(data), data, SHORT, tmp_path / "whole")
    loop.train(fresh(), Diffusion(data), data, replace(SHORT, steps=3), tmp_path / "parts")
    again = loop.train(fresh(), Diffusion(data), data, SHORT, tmp_path / "parts")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters()))


def test_a_state_from_before_an_option_existed_goes_on_with_its_default(data, tmp_path):
    path = tmp_path / "run" / loop.STATE
    loop.train(fresh(), Diffusion(data), data, replace(SHORT, steps=3), path.parent)
    state = read_state(path)
    for name in ("schedule", "ema_decays", "random_on_device", "timesteps.kind", "weighting"):
        del state["settings"][name]
    del state["averages"]
    write_state(path, state)
    with pytest.raises(ValueError, match="weighting was 'none' and is now 'v'"):
        loop.train(fresh(), Diffusion(data, weighting="v"), data, SHORT, path.parent)
    loop.train(fresh(), Diffusion(data), data, SHORT, path.parent)
    assert read_state(path)["step"] == SHORT.steps


def test_other_timesteps_are_another_training(data, tmp_path):
    loop.train(fresh(), Diffusion(data), data, replace(SHORT, steps=3), tmp_path / "run")
    with pytest.raises(ValueError, match="timesteps.kind was 'uniform' and is now 'range'"):
        loop.train(fresh(), Diffusion(data, timesteps=Timesteps("range")), data, SHORT, tmp_path / "run")


def test_a_resume_takes_the_precision_of_the_state(data, tmp_path, monkeypatch):
    """A trial of data types may come out otherwise on another machine or day."""
    auto = replace(SHORT, precision="auto")
    for first, second in (("bf16", "no"), ("no", "bf16")):
        monkeypatch.setattr(loop, "fitting_precision", lambda device, width, first=first: first)
        loop.train(fresh(), Diffusion(data), data, replace(auto, steps=3), tmp_path / first)
        monkeypatch.setattr(loop, "fitting_precision", lambda device, width, second=second: second)
        loop.train(fresh(), Diffusion(data), data, auto, tmp_path / first)
        assert read_state(tmp_path / first / loop.STATE)["settings"]["precision"] == first


def test_cosine_rises_then_falls_to_zero():
    config = replace(SHORT, steps=110, warmup=10, schedule="cosine", learning_rate=1.0)
    rates = [config.rate_at(step) for step in range(110)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3]) and rates[10] == 1.0 and rates[60] == pytest.approx(0.5)
    assert rates[109] < 0.001 and all(a > b for a, b in zip(rates[10:], rates[11:]))


@pytest.mark.parametrize(("change", "message"), [
    ({"schedule": "step"}, "unknown schedule 'step'; use linear, cosine"),
    ({"schedule": "cosine", "cooldown": 2}, "cooldown is 2 with the schedule cosine"),
    ({"ema_decays": (0.9,)}, "name a decay twice"), ({"ema_decays": (1.0,)}, "moving average decay is 1.0"),
    ({"threads": -1}, "threads is -1"), ({"warmup": -1}, "warmup is -1")], ids=str)
def test_impossible_options_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SHORT, **change)


def test_threads_are_as_asked_during_the_training_only(data, tmp_path):
    before, seen = torch.get_num_threads(), []

    def watch(record: Record, average: nn.Module) -> None:
        seen.append(torch.get_num_threads())

    loop.train(fresh(), Diffusion(data), data, replace(SHORT, steps=1, threads=3), tmp_path / "run", watch=[watch])
    assert seen == [3] and torch.get_num_threads() == before


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_blocks_compute_the_same_and_are_let_go(data, backend):
    plain, compiled = fresh(), fresh()
    if not compile_blocks([compiled], torch.device("cpu"), backend):
        pytest.skip("nothing can be compiled here")
    batch = data.batch(torch.Generator().manual_seed(0), 4)
    results = []
    for model in (plain, compiled):
        loss = Diffusion(data)(model, model, batch, torch.Generator().manual_seed(1))
        loss.backward()
        results.append(loss)
    torch.testing.assert_close(results[1], results[0])
    for (name, a), b in zip(plain.named_parameters(), compiled.parameters()):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-5, msg=name)
    forget_compiled([compiled])
    assert all(block._compiled_call_impl is None for block in blocks_of([compiled]))


def test_where_nothing_compiles_it_says_so_and_trains(data, tmp_path, monkeypatch, caplog):
    def refuse(function, **options):
        raise RuntimeError("no compiler found\nand more")

    monkeypatch.setattr(torch, "compile", refuse)
    loop.train(fresh(), Diffusion(data), data, replace(SHORT, compile=True), tmp_path / "run")
    assert "the blocks are not compiled, which takes longer: no compiler found" in caplog.text


@pytest.mark.slow
def test_a_model_is_trained_compiled_and_comes_back_as_it_was(data, tmp_path):
    model = fresh()
    loop.train(model, Diffusion(data), data, replace(SHORT, compile=True, steps=2), tmp_path / "run")
    assert all(block._compiled_call_impl is None for block in blocks_of([model]))
    assert model.config == TINY and set(model.state_dict()) == set(fresh().state_dict())
