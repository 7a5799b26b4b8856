"""The training loop every trainer shares: steps, moving average, checkpoints that survive a kill, resuming.

Whatever a step draws at random follows from (seed, step) alone, so a resumed run repeats the uninterrupted one, and
however a step's images are split (processes, accumulation) the same ones are drawn with the same noise.
"""
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ..model.compiled import compile_blocks, forget_compiled
from .average import averaged_copy, update_averages
from .data import Batch, TrainingData
from .draws import StepGenerator, generator_for
from .fingerprint import training_fingerprint, usual
from .launch import accelerator_for, any_process, claimed_by_launch, main_step, require_writable
from .loop_config import LoopConfig
from .objectives import Objective
from .optimizers import optimizers
from .precision import check_precision, fitting_precision, saved_precision, widest
from .readings import Readings, StepOutcome, check_finite_reading
from .report import Pace, Record
from .scaled_step import move_together
from .sharding import gather_state, is_sharded, spread_state
from .state import check_same, check_steps, read_state, restore, trainable, write_state
from .stopping import StopRequest

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)

STATE = "state.pt"
WatchStep = Callable[[Record, nn.Module], None]  # (what a step did, moving average), on the main process only


class Training:
    """A model, its averages and its optimizers, spread by accelerate over whatever was launched."""

    def __init__(self, model: nn.Module, objective: Objective, data: TrainingData, config: LoopConfig,
                 settings: Mapping[str, object] | None = None, cpu: bool = False) -> None:
        """Prepares everything, writes nothing. Arguments as for `train`."""
        config = settled(config, model, cpu)
        check_precision(model, config.precision)
        self.model, self.objective, self.data, self.config = model, objective, data, config
        self.accelerator = accelerator_for(config, cpu)
        self.device: torch.device = self.accelerator.device
        self.sharded = is_sharded(self.accelerator, config)
        self.averages = {decay: averaged_copy(model).to(self.device) for decay in config.decays}
        set_recompute(model.train(), config.recompute)
        if config.compile:
            compile_blocks(self.networks, self.device)
        self.prepared, *self.steppers = self.accelerator.prepare(model, *optimizers(model, config))
        place_networks(objective, self.device)
        self.readings = Readings(infinite_norms=self.accelerator.scaler is not None)
        self.settings = {**training_fingerprint(config, objective, self.total), **(settings or {})}
        if self.sharded:
            self.settings["fsdp"] = True

    @property
    def total(self) -> int:
        """Images of one step, all processes together."""
        return self.config.batch * self.config.accumulation * self.accelerator.num_processes

    @property
    def waits(self) -> bool:
        """Whether the numbers of a step are there as soon as it is done, so that reading them costs nothing."""
        return self.device.type == "cpu"

    @property
    def all_steppers(self) -> list[Any]:
        """Every optimizer there is."""
        return self.steppers

    @property
    def average(self) -> nn.Module:
        """The moving average that is the result."""
        return self.averages[self.config.ema]

    @property
    def networks(self) -> list[nn.Module]:
        """All that may run in a step: the model, its average, what the objective holds."""
        return [self.model, self.average, *frozen_networks(self.objective)]

    def step(self, number: int) -> None:
        """One update of the weights and of their averages; what it came to goes to `readings`.

        On a CPU FloatingPointError is raised before a NaN reaches the weights. On other devices looking for one would
        make the program wait, so it is found when the readings are read, which is before anything is saved.
        """
        loss = self.gradients(number)
        if self.waits:
            check_finite_reading("loss", number, float(loss), "this step changed nothing")
        norm = self.clipped_norm()
        if self.waits and not self.readings.infinite_norms:
            check_finite_reading("gradient", number, float(norm), "this step changed nothing")
        self.advance(self.steppers, self.config, number, norm)
        self.move_averages()
        self.readings.add(number + 1, loss, norm)

    def advance(self, steppers: Sequence[Any], config: LoopConfig, number: int, norm: Tensor) -> None:
        """Move weights by their gradients, of this norm, at the rate that `config` has for the step; forget these."""
        for stepper in steppers:
            for group in stepper.param_groups:
                group["lr"] = config.rate_at(number) * group.get("rate_factor", 1.0)
        move_together(self.accelerator.scaler, steppers, norm)
        for stepper in steppers:
            stepper.zero_grad()

    def move_averages(self) -> None:
        update_averages(self.averages, self.model)

    def parts(self, number: int) -> Iterator[tuple[Batch, StepGenerator]]:
        """This process's batches of a step, on the device, each with what its random numbers come from."""
        config, accelerator = self.config, self.accelerator
        for part in range(config.accumulation):
            first = (part * accelerator.num_processes + accelerator.process_index) * config.batch
            generator = generator_for(config.seed, number, slice(first, first + config.batch), self.total,
                                      self.device if config.random_on_device else "cpu")
            yield self.data.batch(generator, config.batch).to(self.device), generator

    def gradients(self, number: int) -> Tensor:
        """Leave the step's gradients in the parameters; the mean loss, a scalar on the device."""
        accelerator, losses = self.accelerator, []
        for batch, generator in self.parts(number):
            with accelerator.accumulate(self.prepared):
                with accelerator.autocast():
                    loss = self.objective(self.prepared, self.average, batch, generator)
                accelerator.backward(loss)
            losses.append(loss.detach())
        return accelerator.reduce(torch.stack(losses).mean(), "mean")

    def clipped_norm(self) -> Tensor:
        """The norm that the gradients had before they were cut to `clip`."""
        norm = self.accelerator.clip_grad_norm_(self.prepared.parameters(), self.config.clip)
        return torch.as_tensor(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def save(self, path: Path, step: int) -> None:
        """Write everything `resume` needs; by the main process, while the others wait."""
        state = self.state(step)
        if self.accelerator.is_main_process:
            write_state(path, state)
        self.accelerator.wait_for_everyone()

    def state(self, step: int) -> dict[str, object]:
        """What `save` writes; all processes must ask together."""
        weights: Mapping[str, Any]
        moments: Any
        if self.sharded:
            weights, moments = gather_state(self.prepared, [stepper.optimizer for stepper in self.steppers])
        else:
            weights, moments = trainable(self.model), [stepper.state_dict() for stepper in self.steppers]
        scaler = self.accelerator.scaler
        averages = {decay: trainable(average, like=self.model) for decay, average in self.averages.items()}
        return {"step": step, "settings": self.settings, "model": weights, "average": averages.pop(self.config.ema),
                "averages": averages, "optimizers": moments,
                "scaler": scaler.state_dict() if scaler is not None else None}

    def resume(self, state: dict | None, path: Path) -> int:
        """Take over the state that was read from `path`, if there is one; the step to go on from."""
        step = 0 if state is None else self.load(state, path)
        if any_process(self.accelerator, step != main_step(self.accelerator, step)):
            raise ValueError(f"the processes find different states at {path}; every machine must see the same folder")
        if step:
            logger.info("going on from step %d of %s", step, path)
        return step

    def load(self, state: dict, path: Path) -> int:
        if "settings" in state:
            before = usual(self.config, self.objective, self.settings)
            check_same({**before, **state["settings"]}, self.settings, path)
        check_steps(state["step"], self.config.steps, path)
        for decay, saved in ({self.config.ema: state["average"]} | state.get("averages", {})).items():
            restore(trainable(self.averages[decay], like=self.model), saved, path)
        if self.sharded:
            spread_state(self.prepared, [stepper.optimizer for stepper in self.steppers], state["model"],
                         state["optimizers"])
        else:
            restore(trainable(self.model), state["model"], path)
            for stepper, saved in zip(self.steppers, state["optimizers"], strict=True):
                stepper.load_state_dict(saved)
        if self.accelerator.scaler is not None and state.get("scaler") is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        return state["step"]

    def finish(self) -> None:
        """Take off what the training wrapped around the model; its new weights stay."""
        self.accelerator.unwrap_model(self.prepared, keep_fp32_wrapper=False)
        set_recompute(self.model, False)
        forget_compiled(self.networks)


def train(model: nn.Module, objective: Objective, data: TrainingData, config: LoopConfig, folder: str | Path,
          report: Callable[[int, float], None] | None = None, watch: Sequence[WatchStep] = (),
          settings: Mapping[str, object] | None = None, cpu: bool = False) -> nn.Module:
    """Train `model` in place, from the state in `folder` if there is one; returns the moving average.

    What requires a gradient is trained; that must be float32. report(step, mean loss since the last report) is called
    every `log_every` steps, each of `watch` after every step. A KeyboardInterrupt in either, Ctrl-C and SIGTERM end
    the step, save, then raise KeyboardInterrupt; other exceptions leave the last state. settings: further facts that
    must not change when the training goes on. cpu: leave GPUs alone. Raises OSError when `folder` cannot be written
    to, BlockingIOError (one of these) when another training is at work in it, ValueError for a state that is damaged or
    of another training, FloatingPointError when the loss is no longer finite.
    """
    return train_averages(model, objective, data, config, folder, report, watch, settings, cpu)[config.ema]


def train_averages(model: nn.Module, objective: Objective, data: TrainingData, config: LoopConfig, folder: str | Path,
                   report: Callable[[int, float], None] | None = None, watch: Sequence[WatchStep] = (),
                   settings: Mapping[str, object] | None = None, cpu: bool = False,
                   make: Callable[..., Training] = Training) -> dict[float, nn.Module]:
    """The same; returns all moving averages by their decay, `config.ema` first, then `config.ema_decays`.

    make: the class of the training, called with model, objective, data, config, settings and cpu.
    """
    folder = Path(folder)
    require_writable(folder)
    path = folder / STATE
    with claimed_by_launch(folder):
        state = read_state(path) if path.exists() else None
        training = make(model, objective, data, settled(config, model, cpu, state), settings, cpu)
        start = training.resume(state, path)
        del state
        try:
            with StopRequest() as stop, cpu_threads(config.threads):
                run(training, start, path, stop, Teller(training, Pace(config, start), report, watch))
        finally:
            training.finish()
    return training.averages


def run(training: Training, start: int, path: Path, stop: StopRequest, teller: "Teller") -> None:
    """All steps that are left, and the states on the way. Raises KeyboardInterrupt after a step that was to be last."""
    config, accelerator = training.config, training.accelerator
    for step in range(start + 1, config.steps + 1):
        training.step(step - 1)
        saving = step % config.save_every == 0 or step == config.steps
        due = saving or step % config.log_every == 0
        alone = accelerator.num_processes == 1
        known = training.readings.read() if due or training.waits or (alone and stop.asked) else []
        if accelerator.is_main_process:
            stop.asked |= teller.tell(step, known)
        # Asking the other processes makes a GPU wait: only when it waits anyway.
        stopping = stop.asked if alone else (due or training.waits) and any_process(accelerator, stop.asked)
        if saving or stopping:
            training.readings.read()        # raises before a NaN is saved
            training.save(path, step)
        if stopping and step < config.steps:
            logger.info("stopped at step %d; the next run goes on from there", step)
            raise KeyboardInterrupt


class Teller:
    """Lets everyone know what a step did, on the main process."""

    def __init__(self, training: Training, pace: Pace, report: Callable[[int, float], None] | None,
                 watch: Sequence[WatchStep]) -> None:
        self.training, self.pace, self.report, self.watch = training, pace, report, watch

    def tell(self, step: int, known: Sequence[StepOutcome]) -> bool:
        """known: what was read since the last step. True when one of those who are told wants to stop."""
        config = self.training.config
        record = self.pace.record(step, known)
        try:
            with self.training.accelerator.autocast():
                for watcher in self.watch:
                    watcher(record, self.training.average)
            if step % config.log_every == 0 or step == config.steps:
                mean = self.pace.line(record)
                if self.report is not None:
                    self.report(step, mean)
        except KeyboardInterrupt:
            return True
        return False


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Inside, torch computes with that many CPU threads; 0 leaves the number as it is."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def settled(config: LoopConfig, model: nn.Module, cpu: bool, state: Mapping[str, Any] | None = None) -> LoopConfig:
    """The same with the precision that "auto" stands for: that of the training to go on with, or what suits here."""
    from accelerate import PartialState
    if config.precision != "auto":
        return config
    precision = saved_precision(state) or fitting_precision(PartialState(cpu=cpu).device, widest(model))
    logger.info("precision: %s", precision)
    return replace(config, precision=precision)


def set_recompute(model: nn.Module, recompute: bool) -> None:
    for module in cast(Iterable[Any], model.modules()):
        if hasattr(module, "recompute"):
            module.recompute = recompute


def frozen_networks(objective: Any) -> list[nn.Module]:
    """The networks that an objective holds, such as a teacher."""
    parts = [getattr(objective, field.name) for field in fields(objective)] if is_dataclass(objective) else []
    return [part for part in parts if isinstance(part, nn.Module)]


def place_networks(objective: Objective, device: torch.device) -> None:
    """Move the networks of an objective to where the training runs."""
    for part in frozen_networks(objective):
        part.to(device)
