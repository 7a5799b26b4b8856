"""The training loop every trainer shares: steps, moving average, checkpoints that survive a kill, resuming.

Whatever a step draws at random follows from (seed, step) alone, so a resumed run repeats the uninterrupted one.
"""
import copy
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .data import PreparedFolder
from .objectives import Objective

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast to train."""

    steps: int
    batch: int
    learning_rate: float
    warmup: int = 100             # steps over which the learning rate rises from zero
    cooldown: int = 0             # last steps over which it falls to zero
    optimizer: str = "adamw"      # or "muon": orthogonalised momentum for the matrices of the blocks
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    clip: float = 1.0             # largest gradient norm
    ema: float = 0.95             # decay of the moving average of the weights
    precision: str = "no"         # "bf16" or "fp16" autocast, or "no"
    seed: int = 0
    save_every: int = 500
    log_every: int = 50

    def __post_init__(self) -> None:
        if min(self.steps, self.batch) < 1 or self.learning_rate <= 0:
            raise ValueError(f"steps {self.steps}, batch {self.batch} and learning rate {self.learning_rate} "
                             "must be positive")
        if not 0 <= self.ema < 1:
            raise ValueError(f"moving average decay is {self.ema}; it must be at least 0 and below 1")
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f"unknown optimizer {self.optimizer!r}; use adamw or muon")

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, 0 .. steps - 1."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        fall = min(1.0, (self.steps - step) / max(1, self.cooldown))
        return self.learning_rate * min(rise, fall)


def generator_for(seed: int, step: int) -> torch.Generator:
    """The one source of randomness of a training step."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def optimizers(model: nn.Module, config: LoopConfig) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the matrices inside the blocks and AdamW for the rest."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if config.optimizer == "muon" and name.startswith("blocks.")
                and p.ndim == 2 and "table" not in name]
    chosen = {id(p) for p in matrices}
    result = [torch.optim.AdamW([p for _, p in named if id(p) not in chosen], lr=config.learning_rate,
                                betas=config.betas, eps=config.epsilon, weight_decay=config.weight_decay)]
    if matrices:
        result.append(torch.optim.Muon(matrices, lr=config.learning_rate, weight_decay=config.weight_decay,
                                       adjust_lr_fn="match_rms_adamw"))
    return result


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * model, parameters only."""
    torch._foreach_lerp_([*average.parameters()], [p.detach() for p in model.parameters()], 1 - decay)


def save_state(path: Path, state: dict) -> None:
    """Write beside and rename: a kill at any moment leaves the old file or the new one."""
    beside = path.with_suffix(".partial")
    torch.save(state, beside)
    os.replace(beside, path)


def train(model: nn.Module, objective: Objective, data: PreparedFolder, config: LoopConfig, folder: str | Path,
          report: Callable[[int, float], None] | None = None) -> nn.Module:
    """Train `model` in place, from the last checkpoint in `folder` if there is one; returns the moving average.

    report(step, mean loss since the last report) is called every `log_every` steps. Ctrl-C saves, then raises.
    """
    from accelerate import Accelerator

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(mixed_precision=config.precision)
    average = copy.deepcopy(model).requires_grad_(False).eval().to(accelerator.device)
    model.train()
    steppers = optimizers(model, config)
    prepared = accelerator.prepare(model)
    start = resume(folder / "state.pt", model, average, steppers)
    losses, began = [], time.perf_counter()

    def save(step: int) -> None:
        save_state(folder / "state.pt", {"step": step, "model": model.state_dict(), "average": average.state_dict(),
                                         "optimizers": [s.state_dict() for s in steppers]})

    step = start
    try:
        for step in range(start, config.steps):
            losses.append(take_step(step, prepared, average, objective, data, config, accelerator, steppers))
            if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
                mean, pace = sum(losses) / len(losses), (time.perf_counter() - began) / (step + 1 - start)
                logger.info("step %d of %d, loss %.4f, %.2f s a step, %.0f min left", step + 1, config.steps, mean,
                            pace, pace * (config.steps - step - 1) / 60)
                if report is not None:
                    report(step + 1, mean)
                losses = []
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                save(step + 1)
    except KeyboardInterrupt:
        save(step)
        logger.info("stopped at step %d; the next run goes on from there", step)
        raise
    return average


def resume(path: Path, model: nn.Module, average: nn.Module, steppers: list[torch.optim.Optimizer]) -> int:
    """Load the checkpoint if there is one and return the step to go on from."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True, map_location="cpu")
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    for stepper, saved in zip(steppers, state["optimizers"], strict=True):
        stepper.load_state_dict(saved)
    logger.info("going on from step %d of %s", state["step"], path)
    return state["step"]


def take_step(step: int, model: nn.Module, average: nn.Module, objective: Objective, data: PreparedFolder,
              config: LoopConfig, accelerator, steppers: list[torch.optim.Optimizer]) -> float:
    """One update of the weights and of their moving average; returns the loss."""
    generator = generator_for(config.seed, step)
    batch = data.batch(generator, config.batch).to(accelerator.device)
    with accelerator.autocast():
        loss = objective(model, average, batch, generator)
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), config.clip)
    for stepper in steppers:
        for group in stepper.param_groups:
            group["lr"] = config.rate_at(step)
        stepper.step()
        stepper.zero_grad()
    update_average(average, accelerator.unwrap_model(model), config.ema)
    value = loss.item()
    if value != value:
        raise FloatingPointError(f"the loss became NaN at step {step}; lower the learning rate or use bf16 "
                                 "instead of fp16")
    return value
