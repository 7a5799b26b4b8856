"""How a training was launched: one process or several of accelerate, and the folder that they share."""
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..files.claim import claimed
from .loop_config import LoopConfig

if TYPE_CHECKING:
    from accelerate import Accelerator


def accelerator_for(config: LoopConfig, cpu: bool = False) -> "Accelerator":
    """accelerate's view of how this process was launched. It keeps one precision a process unless told to forget it."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != config.precision:
        AcceleratorState._reset_state()
    return Accelerator(cpu=cpu, mixed_precision=config.precision, gradient_accumulation_steps=config.accumulation)


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


@contextmanager
def claimed_by_launch(folder: Path) -> Iterator[None]:
    """The folder is this training's alone: its first process claims it. BlockingIOError where another one trains."""
    if int(os.environ.get("RANK", 0)) != 0:
        yield
        return
    with claimed(folder):
        yield
