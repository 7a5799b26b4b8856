"""The training loop every trainer shares: steps, moving average, checkpoints that survive a kill, resuming.

Whatever a step draws at random follows from (seed, step) alone, so a resumed run repeats the uninterrupted one, and
however a step's pictures are split (processes, accumulation) the same ones are drawn with the same noise.
"""
import logging
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from .average import averaged_copy, update_average
from .data import PreparedFolder
from .draws import generator_for
from .loop_config import LoopConfig
from .objectives import Objective
from .optimizers import optimizers
from .precision import check_precision, fitting_precision, widest
from .report import Pace, Record
from .sharding import gather, is_sharded, spread
from .state import check_same, read_state, restore, trainable, write_state
from .stopping import StopRequest

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

STATE = "state.pt"
# Fields that may change between a run and the one that goes on from it.
FREE = ("steps", "save_every", "log_every", "accumulation", "recompute")
Watch = Callable[[Record, nn.Module], None]      # (what a step did, moving average), on the main process only


class Outcome(NamedTuple):
    """Of one step: mean loss over all processes, and the gradient norm before clipping."""

    loss: float
    norm: float


class Training:
    """A model, its average and its optimizers, spread by accelerate over whatever was launched."""

    def __init__(self, model: nn.Module, objective: Objective, data: PreparedFolder, config: LoopConfig,
                 settings: Mapping[str, object] | None = None, cpu: bool = False) -> None:
        """Prepares everything, writes nothing. Arguments as for `train`."""
        config = settled(config, model, cpu)
        check_precision(model, config.precision)
        self.model, self.objective, self.data, self.config = model, objective, data, config
        self.accelerator = accelerator_for(config, cpu)
        self.sharded = is_sharded(self.accelerator, config)
        self.average = averaged_copy(model).to(self.accelerator.device)
        set_recompute(model.train(), config.recompute)
        self.prepared, *self.steppers = self.accelerator.prepare(model, *optimizers(model, config))
        place(objective, self.accelerator.device)
        self.settings = {**fingerprint(config, objective, self.total), **(settings or {})}
        if self.sharded:
            self.settings["fsdp"] = True

    @property
    def total(self) -> int:
        """Pictures of one step, all processes together."""
        return self.config.batch * self.config.accumulation * self.accelerator.num_processes

    def step(self, number: int) -> Outcome:
        """One update of the weights and of their average. Raises FloatingPointError before a NaN reaches them."""
        loss = self.gradients(number)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss became {loss} at step {number}; this step changed nothing. Lower the "
                                     "learning rate or use bf16 instead of fp16, and go on from the last state")
        norm = float(self.accelerator.clip_grad_norm_(self.prepared.parameters(), self.config.clip))
        if not math.isfinite(norm) and self.accelerator.scaler is None:
            raise FloatingPointError(f"the gradient became {norm} at step {number}; this step changed nothing. "
                                     "Lower the learning rate and go on from the last state")
        for stepper in self.steppers:
            for group in stepper.param_groups:
                group["lr"] = self.config.rate_at(number) * group.get("rate_factor", 1.0)
            stepper.step()
            stepper.zero_grad()
        update_average(self.average, self.model, self.config.ema)
        return Outcome(loss, norm)

    def gradients(self, number: int) -> float:
        """Leave the step's gradients in the parameters; the mean loss."""
        config, accelerator, losses = self.config, self.accelerator, []
        for part in range(config.accumulation):
            first = (part * accelerator.num_processes + accelerator.process_index) * config.batch
            generator = generator_for(config.seed, number, slice(first, first + config.batch), self.total)
            batch = self.data.batch(generator, config.batch).to(accelerator.device)
            with accelerator.accumulate(self.prepared):
                with accelerator.autocast():
                    loss = self.objective(self.prepared, self.average, batch, generator)
                accelerator.backward(loss)
            losses.append(loss.detach())
        return accelerator.reduce(torch.stack(losses).mean(), "mean").item()

    def save(self, path: Path, step: int) -> None:
        """Write everything `resume` needs; by the main process, while the others wait."""
        if self.sharded:
            weights, moments = gather(self.prepared, [stepper.optimizer for stepper in self.steppers])
        else:
            weights, moments = trainable(self.model), [stepper.state_dict() for stepper in self.steppers]
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            write_state(path, {"step": step, "settings": self.settings, "model": weights,
                               "average": trainable(self.average, like=self.model), "optimizers": moments,
                               "scaler": scaler.state_dict() if scaler is not None else None})
        self.accelerator.wait_for_everyone()

    def resume(self, path: Path) -> int:
        """Take over the state at `path` if there is one; the step to go on from."""
        step = self.load(read_state(path), path) if path.exists() else 0
        if any_process(self.accelerator, step != main_step(self.accelerator, step)):
            raise ValueError(f"the processes find different states at {path}; every machine must see the same folder")
        if step:
            logger.info("going on from step %d of %s", step, path)
        return step

    def load(self, state: dict, path: Path) -> int:
        if "settings" in state:
            check_same(state["settings"], self.settings, path)
        restore(trainable(self.average, like=self.model), state["average"], path)
        if self.sharded:
            spread(self.prepared, [stepper.optimizer for stepper in self.steppers], state["model"], state["optimizers"])
        else:
            restore(trainable(self.model), state["model"], path)
            for stepper, saved in zip(self.steppers, state["optimizers"], strict=True):
                stepper.load_state_dict(saved)
        if self.accelerator.scaler is not None and state.get("scaler") is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        return state["step"]

    def finish(self) -> None:
        """Leave the model as it came, with its new weights."""
        self.accelerator.unwrap_model(self.prepared, keep_fp32_wrapper=False)
        set_recompute(self.model, False)


def train(model: nn.Module, objective: Objective, data: PreparedFolder, config: LoopConfig, folder: str | Path,
          report: Callable[[int, float], None] | None = None, watch: Sequence[Watch] = (),
          settings: Mapping[str, object] | None = None, cpu: bool = False) -> nn.Module:
    """Train `model` in place, from the state in `folder` if there is one; returns the moving average.

    What requires a gradient is trained; that must be float32. report(step, mean loss since the last report) is called
    every `log_every` steps, each of `watch` after every step. A KeyboardInterrupt in either, Ctrl-C and SIGTERM end
    the step, save, then raise KeyboardInterrupt; other exceptions leave the last state. settings: further facts that
    must not change when the training goes on. cpu: leave GPUs alone. Raises OSError when `folder` cannot be written
    to, ValueError for a state that is damaged or of another training, FloatingPointError when the loss is no number
    any more.
    """
    folder = Path(folder)
    require_writable(folder)
    training = Training(model, objective, data, config, settings, cpu)
    start = training.resume(folder / STATE)
    pace = Pace(config, start)
    try:
        with StopRequest() as stop:
            for step in range(start, config.steps):
                outcome = training.step(step)
                if training.accelerator.is_main_process:
                    record = pace.record(step + 1, outcome.loss, outcome.norm)
                    stop.asked |= tell(record, pace, training, report, watch)
                stopping = any_process(training.accelerator, stop.asked)
                if stopping or (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                    training.save(folder / STATE, step + 1)
                if stopping and step + 1 < config.steps:
                    logger.info("stopped at step %d; the next run goes on from there", step + 1)
                    raise KeyboardInterrupt
    finally:
        training.finish()
    return training.average


def tell(record: Record, pace: Pace, training: Training, report: Callable[[int, float], None] | None,
         watch: Sequence[Watch]) -> bool:
    """Let everyone know what a step did; True when one of them wants to stop."""
    try:
        with training.accelerator.autocast():
            for watcher in watch:
                watcher(record, training.average)
        if record.step % training.config.log_every == 0 or record.step == training.config.steps:
            mean = pace.line(record)
            if report is not None:
                report(record.step, mean)
    except KeyboardInterrupt:
        return True
    return False


def settled(config: LoopConfig, model: nn.Module, cpu: bool) -> LoopConfig:
    """The same with the precision that "auto" stands for on this machine."""
    from accelerate import PartialState
    if config.precision != "auto":
        return config
    precision = fitting_precision(PartialState(cpu=cpu).device, widest(model))
    logger.info("precision: %s", precision)
    return replace(config, precision=precision)


def accelerator_for(config: LoopConfig, cpu: bool = False) -> "Accelerator":
    """accelerate's view of how this process was launched. It keeps one precision a process unless told to forget it."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != config.precision:
        AcceleratorState._reset_state()
    return Accelerator(cpu=cpu, mixed_precision=config.precision, gradient_accumulation_steps=config.accumulation)


def set_recompute(model: nn.Module, recompute: bool) -> None:
    for module in model.modules():
        if hasattr(module, "recompute"):
            module.recompute = recompute


def place(objective: Objective, device: torch.device) -> None:
    """Move the networks an objective holds, such as a teacher, to where the training runs."""
    if is_dataclass(objective):
        for field in fields(objective):
            part = getattr(objective, field.name)
            if isinstance(part, nn.Module):
                part.to(device)


def fingerprint(config: LoopConfig, objective: Objective, total: int) -> dict[str, object]:
    """What decides the course of a training, as plain values by name."""
    facts = {name: value for name, value in asdict(config).items() if name not in FREE}
    facts["batch"] = total
    if is_dataclass(objective):
        facts["objective"] = type(objective).__name__
        facts |= {field.name: getattr(objective, field.name) for field in fields(objective)
                  if isinstance(getattr(objective, field.name), (int, float, str))}
    return facts


def any_process(accelerator: "Accelerator", flag: bool) -> bool:
    """Whether the flag is set on any process; all of them get the same answer."""
    if accelerator.num_processes == 1:
        return flag
    return accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum").item() > 0


def main_step(accelerator: "Accelerator", step: int) -> int:
    """The main process's value, on all of them."""
    from accelerate.utils import broadcast_object_list
    return broadcast_object_list([step])[0] if accelerator.num_processes > 1 else step


def require_writable(folder: Path) -> None:
    """Refuse a folder that cannot hold the state before any work is done for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"cannot write to {folder}: {error.strerror}. Choose another folder for the training") from error
