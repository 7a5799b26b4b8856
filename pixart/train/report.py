"""What a training tells while it runs: a line with the time left, and scalars for TensorBoard."""
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from .loop_config import LoopConfig
from .readings import StepOutcome

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """One step that was made."""

    step: int                 # steps made so far, 1 .. steps
    steps: int
    loss: float               # the last that was read: of this step on a CPU, elsewhere of the last line of the log
    norm: float               # of the gradient, before clipping, of the same step
    rate: float               # learning rate
    seconds: float            # that this step took
    left: float               # seconds until the last step, at the mean pace so far
    known: tuple[StepOutcome, ...] = ()  # all losses that were read since the step before


class Pace:
    """The clock of one run, and the losses since the last line."""

    def __init__(self, config: LoopConfig, start: int) -> None:
        self.config, self.start = config, start
        self.began = self.last = time.perf_counter()
        self.losses: list[float] = []
        self.latest = StepOutcome(start, math.nan, math.nan)

    def record(self, step: int, known: Sequence[StepOutcome]) -> Record:
        """To be called once after every step, with what was read since the step before."""
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        self.losses += [outcome.loss for outcome in known]
        self.latest = known[-1] if known else self.latest
        left = (now - self.began) / (step - self.start) * (self.config.steps - step)
        return Record(step, self.config.steps, self.latest.loss, self.latest.norm, self.config.rate_at(step - 1),
                      seconds, left, tuple(known))

    def line(self, record: Record) -> float:
        """Log the progress; the mean loss since the last line."""
        mean = sum(self.losses) / len(self.losses)
        self.losses = []
        rival = "" if math.isnan(self.latest.rival) else f", loss of the fake score {self.latest.rival:.4f}"
        logger.info("step %d of %d, loss %.4f%s, gradient %.3g, %.2f s a step, %s left", record.step, record.steps,
                    mean, rival, record.norm, (self.last - self.began) / (record.step - self.start),
                    duration(record.left))
        return mean


def duration(seconds: float) -> str:
    """"45 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class TensorBoard:
    """Writes loss, gradient norm, learning rate and seconds of every step to event files below `folder`."""

    def __init__(self, folder: Path) -> None:
        """Raises ImportError where tensorboard is not installed."""
        from torch.utils.tensorboard import SummaryWriter
        self._open, self.folder = SummaryWriter, folder
        self.writer: Any = None

    def __call__(self, record: Record, average: nn.Module) -> None:
        if self.writer is None:          # what an interrupted run wrote beyond its last state is dropped
            self.writer = self._open(str(self.folder), purge_step=record.step, flush_secs=10)
        for outcome in record.known:
            self.writer.add_scalar("loss", outcome.loss, outcome.step)
            self.writer.add_scalar("gradient norm", outcome.norm, outcome.step)
            if not math.isnan(outcome.rival):
                self.writer.add_scalar("loss of the fake score", outcome.rival, outcome.step)
        self.writer.add_scalar("learning rate", record.rate, record.step)
        self.writer.add_scalar("seconds a step", record.seconds, record.step)
        if record.step == record.steps:
            self.writer.close()
