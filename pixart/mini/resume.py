"""Keeps the state of a small training in one file, so that it can stop and go on."""
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from ..train.state import read_state, write_state

logger = logging.getLogger(__name__)


class ResumableTraining:
    """Learning rate, state file and log of one training with AdamW: warm-up, then a cosine down to a hundredth."""

    every = 100                # steps between two lines of the log
    saving = 10.0              # seconds between two states on disk, at least

    def __init__(self, name: str, model: nn.Module, rate: float, steps: int, state: Path | None,
                 seed: int = 0, decay: float = 0.01) -> None:
        """`state` is written every `every` steps and read when it exists; None keeps nothing."""
        self.name, self.model, self.steps, self.state, self.step, self.seed = name, model, steps, state, 0, seed
        self.optimiser = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=decay)
        self.rate = rate
        self._since = self._saved = time.monotonic()
        if state is not None and state.exists():
            self._load(state)

    def __iter__(self) -> Iterator[int]:
        """The numbers of the steps that are left. Each reseeds torch, so that a resumed training repeats itself."""
        while self.step < self.steps:
            torch.manual_seed(self.seed * 1_000_003 + self.step)
            yield self.step

    def advance(self, loss: torch.Tensor, clip: float = 1.0) -> None:
        """One optimiser step on `loss`, then the log and the state file when it is time."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * self._share()
        self.optimiser.step()
        self.step += 1
        if self.step % self.every == 0 or self.step == self.steps:
            seconds = (time.monotonic() - self._since) / self.every
            logger.info("%s: step %d of %d, loss %.4f, %.3f s a step", self.name, self.step, self.steps,
                        loss.item(), seconds)
            self._since = time.monotonic()
            if self._since - self._saved > self.saving or self.step == self.steps:
                self._save()
                self._saved = self._since

    def _share(self) -> float:
        """The share of the full learning rate at this step."""
        warm = min(100, self.steps // 10 + 1)
        if self.step < warm:
            return (self.step + 1) / warm
        return 0.01 + 0.99 * (1 + math.cos(math.pi * (self.step - warm) / max(1, self.steps - warm))) / 2

    def _save(self) -> None:
        if self.state is None:
            return
        write_state(self.state, {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(),
                                 "step": self.step})

    def _load(self, path: Path) -> None:
        kept = read_state(path)
        self.model.load_state_dict(kept["model"])
        self.optimiser.load_state_dict(kept["optimiser"])
        self.step = kept["step"]
        logger.info("%s: goes on at step %d from %s", self.name, self.step, path)
