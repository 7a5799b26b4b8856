"""What every refusal of a malformed file must be, and how to make such files of right ones."""
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

SECONDS = 5.0
HUGE, NAN, DEEP = 1e300, float("nan"), "[" * 100_000
Tensors = dict[str, Tensor]


def edited(path: Path, change: Callable[[Tensors], object], **metadata: str) -> Path:
    """A safetensors file with its tensors changed in place, and header entries replaced."""
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    with safe_open(path, "pt") as file:
        header = file.metadata() or {}
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {**header, **metadata})
    return path


def refused(opener: Callable[[Path], object], path: Path, says: str) -> None:
    """One line that says it and names the file, its finding within the first 160 characters, in bounded time."""
    started = time.process_time()
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        opener(path)
    said = str(caught.value)
    assert time.process_time() - started < SECONDS
    assert says in said[:300] and path.name in said and "\n" not in said and len(said) < 900, said


def same(tensors: Tensors) -> None:
    """No change."""


def put(name: str, make: Callable[[Tensor], Tensor]) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.__setitem__(name, make(tensors[name]))


def filled(name: str, value: float, dtype: torch.dtype = torch.float32) -> Callable[[Tensors], object]:
    return put(name, lambda tensor: torch.full(tensor.shape, value, dtype=dtype))
