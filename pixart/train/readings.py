"""Losses and gradient norms of training steps: kept on the device, and read from it all at once on request."""
import math
from typing import NamedTuple

import torch
from torch import Tensor


class StepOutcome(NamedTuple):
    """Of one step: mean loss over all processes, and the gradient norm before clipping."""

    step: int                 # 1 .. steps
    loss: float
    norm: float
    rival: float = math.nan   # loss of the second player, where there is one


class Readings:
    """Losses and gradient norms that have not been read yet.

    Reading a number makes the program wait for a GPU to finish all it was told before, so it is done every now and
    then for all steps since the last time.
    """

    def __init__(self, infinite_norms: bool = False) -> None:
        """infinite_norms: accept them, as with fp16, whose scaler leaves such a step out."""
        self.infinite_norms = infinite_norms
        self._steps: list[int] = []
        self._values: list[Tensor] = []

    def add(self, step: int, loss: Tensor, norm: Tensor, rival: Tensor | None = None) -> None:
        self._steps.append(step)
        values = (loss, norm) if rival is None else (loss, norm, rival)
        self._values.append(torch.stack([value.detach().float() for value in values]))

    def read(self) -> list[StepOutcome]:
        """All since the last reading. Raises FloatingPointError for the first that is no number."""
        if not self._steps:
            return []
        values = torch.stack(self._values).tolist()
        found = [StepOutcome(step, *row) for step, row in zip(self._steps, values)]
        self._steps, self._values = [], []
        for outcome, row in zip(found, values):
            for value in (row[0], *row[2:]):
                check_finite_reading("loss", outcome.step - 1, value, "nothing was saved since")
            if not self.infinite_norms:
                check_finite_reading("gradient", outcome.step - 1, outcome.norm, "nothing was saved since")
        return found


def check_finite_reading(what: str, number: int, value: float, consequence: str) -> None:
    """Raise FloatingPointError when the loss or the gradient of step `number` (from 0) is no finite number."""
    if not math.isfinite(value):
        advice = "Lower the learning rate or use bf16 instead of fp16" if what == "loss" else "Lower the learning rate"
        raise FloatingPointError(f"the {what} became {value} at step {number}; {consequence}. {advice}, and go on from "
                                 "the last state")
