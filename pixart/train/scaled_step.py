"""One step of several optimizers under the scaler that keeps gradients of fp16 from vanishing."""
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.amp import GradScaler


def move_together(scaler: "GradScaler | None", steppers: Sequence[Any], norm: Tensor) -> None:
    """A step of all optimizers; with the scaler of fp16, which has unscaled the gradients, of all or of none.

    Step by step, as accelerate does it, the scaler is settled after the first: it would divide the gradients of the
    second once more, and where one of its own overflowed, clipping had already made NaN of those of the first.
    """
    if scaler is None or len(steppers) == 1:
        for stepper in steppers:
            stepper.step()
        return
    if torch.isfinite(norm):
        for stepper in steppers:
            scaler.step(stepper.optimizer)
    scaler.update()
