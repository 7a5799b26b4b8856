"""The state of a training on disk: written whole or not at all, read only when it belongs to this training."""
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files.atomic import replacing

# What torch's unpickler raises for files that are no pickles of tensors.
STATE_DAMAGE = (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, LookupError, ValueError, TypeError,
                AttributeError, OverflowError, AssertionError, struct.error)


def write_state(path: Path, state: Mapping[str, object]) -> None:
    """Replace the state at `path`. A kill, an error or a full disk leaves the state that lay there.

    Raises OSError with the reason and what is left.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as beside, open(beside, "wb") as file:
            torch.save(dict(state), file)
    except (OSError, RuntimeError) as error:
        left = "the previous state is untouched" if path.is_file() else "nothing was written"
        raise OSError(f"cannot write the training state {path}: {reason(error)}; {left}. Make room or choose a "
                      "folder that can be written to, then start again: the training goes on from there") from error


def reason(error: BaseException) -> str:
    """The operating system's own words where there are any below torch's."""
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, OSError) and below.strerror:
            return below.strerror
        below = below.__cause__ or below.__context__
    return (str(error) or type(error).__name__).splitlines()[0]


def read_state(path: Path, mapped: bool = False) -> dict[str, Any]:
    """What `write_state` wrote, on the CPU. Raises ValueError for a file that is damaged or no state."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu", mmap=mapped)
    except STATE_DAMAGE as error:
        raise ValueError(f"{path} is damaged or no training state ({reason(error)}). Put a copy of it back to go on, "
                         "or move it away to start from step 0") from error
    step = state.get("step") if isinstance(state, dict) else None
    if not isinstance(state, dict) or not isinstance(step, int) or step < 0:
        raise ValueError(f"{path} is no training state: it does not say its step. Move it away to start from step 0")
    return state


def peek_state(path: Path) -> dict[str, Any] | None:
    """What `read_state` gives, its tensors left in the file until they are used; None where there is no state."""
    return read_state(path, mapped=zipfile.is_zipfile(path)) if path.exists() else None


def check_same(saved: Mapping[str, object], now: Mapping[str, object], path: Path) -> None:
    """Refuse to go on with other settings than those the state was made with, naming each."""
    changed = [f"{name} was {saved.get(name)!r} and is now {now.get(name)!r}"
               for name in sorted({*saved, *now}) if plain_value(saved.get(name)) != plain_value(now.get(name))]
    if changed:
        raise ValueError(f"{path} belongs to a training with other settings: {'; '.join(changed)}. Use the old values "
                         "to go on, or another folder (in ComfyUI another name) to start anew")


def check_steps(made: int, asked: int, path: Path) -> None:
    """Refuse a training that has gone further than is asked for: its result would silently be another one's."""
    if made > asked:
        raise ValueError(f"{made} steps were made already, more than the {asked} asked for. Ask for as many or more, "
                         f"or choose another folder (in ComfyUI another name) to start anew: {path}")


def plain_value(value: object) -> object:
    """Tuples and lists compare alike."""
    return list(value) if isinstance(value, (tuple, list)) else value


def trainable(model: nn.Module, like: nn.Module | None = None) -> dict[str, Tensor]:
    """Parameters that are trained, by name; of `model`, as far as they are trained in `like`."""
    chosen = {name for name, p in (like or model).named_parameters() if p.requires_grad}
    return {name: p.detach() for name, p in model.named_parameters() if name in chosen}


@torch.no_grad()
def restore(values: Mapping[str, Tensor], saved: Mapping[str, Tensor], path: Path) -> None:
    """Copy saved tensors into `values`, in place; raises ValueError where one is missing or has another shape."""
    wrong = [name for name, value in values.items() if name not in saved or saved[name].shape != value.shape]
    if wrong:
        raise ValueError(f"{path} does not fit this model: {len(wrong)} of {len(values)} trained tensors are missing "
                         f"or have another shape, the first is {wrong[0]}. It belongs to another model or method")
    for name, value in values.items():
        value.copy_(saved[name])
