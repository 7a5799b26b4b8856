"""How long each stage of a build may take, and how many steps that makes."""
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..files.atomic import replacing
from ..train.average import copy_sharing_frozen
from ..train.loop import Training, cpu_threads
from ..train.loop_config import LoopConfig

logger = logging.getLogger(__name__)


@dataclass
class Clock:
    """Shares out a number of minutes over the stages that are still to come; None: the stages' own steps."""

    minutes: float | None
    started: float = field(default_factory=time.monotonic)
    reserve: float = 45.0        # seconds for what comes after the last stage

    SHARES = {"teacher": 6.0, "student": 3.0, "control": 1.0, "tdm": 1.0, "dmd": 1.0}

    def __post_init__(self) -> None:
        if self.minutes is not None and not 0 <= self.minutes < math.inf:
            raise ValueError(f"minutes are {self.minutes}; they must be a finite number from 0, or None for no limit")

    def seconds(self, stage: str, to_come: tuple[str, ...]) -> float | None:
        """For `stage`, one of those to come."""
        if self.minutes is None:
            return None
        left = 60 * self.minutes - self.reserve - (time.monotonic() - self.started)
        return max(5.0, left * self.SHARES[stage] / sum(self.SHARES[name] for name in to_come))


def planned(path: Path, config: LoopConfig, seconds: float | None, model: nn.Module, objective: Any, data: Any,
            make: Callable[..., Training] = Training) -> LoopConfig:
    """The configuration with as many steps as fit into `seconds`; once found, kept at `path` for a run that goes on.

    The moving average then reaches over a twelfth of them at most, so that it forgets where the training began.
    """
    if path.exists():
        steps = json.loads(path.read_text())["steps"]
    elif seconds is None:
        steps = config.steps
    else:
        steps = max(1, int(seconds / seconds_a_step(model, objective, data, config, make)))
    with replacing(path) as beside:
        beside.write_text(json.dumps({"steps": steps}))
    save_every = max(1, steps // 5) if seconds else config.save_every
    return replace(config, steps=steps, warmup=min(config.warmup, steps // 10 + 1), save_every=save_every,
                   ema=min(config.ema, max(0.0, 1 - 12 / steps)), cooldown=int(steps * config.cooldown / config.steps))


def seconds_a_step(model: nn.Module, objective: Any, data: Any, config: LoopConfig,
                   make: Callable[..., Training] = Training) -> float:
    """Measured on copies of what is trained, which are thrown away."""
    cpu = next(model.parameters()).device.type == "cpu"
    warming, timed = (2, 4) if cpu else (12, 20)
    rival = getattr(make, "keywords", {}).get("rival")
    more = {} if rival is None else {"rival": replace(rival, model=copy_sharing_frozen(rival.model))}
    trial = make(copy_sharing_frozen(model), objective, data, config, cpu=cpu, **more)
    with cpu_threads(config.threads):
        for step in range(warming):
            trial.step(step)
        synchronize(trial.device)
        started = time.monotonic()
        for step in range(warming, warming + timed):
            trial.step(step)
        synchronize(trial.device)
        seconds = (time.monotonic() - started) / timed
    trial.finish()
    logger.info("%.4f s a step", seconds)
    return seconds


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
