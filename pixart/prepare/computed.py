"""Features and latents that the official tools computed: .npz and .npy files."""
import struct
import zipfile
import zlib
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import torch
from torch import Tensor

# What numpy and the standard library raise for archives and headers that are no such files.
ARRAY_DAMAGE = (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError, MemoryError, SyntaxError,
                NotImplementedError, OverflowError, RecursionError, RuntimeError, zlib.error, struct.error, TokenError)


class BrokenFile(ValueError):
    """Why a computed file cannot be used, as a sentence about it."""


def read_features(path: Path, tokens: int) -> Tensor:
    """Text features (l, width) of the real tokens: short ones were padded with copies of the last one and mask 0."""
    features, mask = _array(path, "caption_feature"), _array(path, "attention_mask")
    features = features.reshape(-1, features.shape[-1]) if features.ndim else features
    mask = mask.reshape(-1)
    if features.ndim != 2 or len(mask) != len(features) or len(mask) > tokens or not mask.any():
        raise BrokenFile(f"its {path.name} holds features {features.shape} with mask {mask.shape} of {int(mask.sum())} "
                         f"tokens; expected (1, up to {tokens}, width) and (1, as many)")
    return _tensor(features[mask.astype(bool)], path)


def moments_shape(path: Path) -> tuple[int, int]:
    """Sides (h, w) of the latents in a file of moments, without reading them."""
    shape = _array(path, None).shape
    if len(shape) == 4 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != 3 or shape[0] % 2:
        raise BrokenFile(f"its {path.name} has shape {shape}, expected (8, h, w): mean and standard deviation")
    return shape[1:]


def read_moments(path: Path) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C, h, w) of latents, not scaled; of a .npz its array `arr_0`."""
    values = _array(path, "arr_0" if path.suffix == ".npz" else None)
    if values.ndim == 4 and len(values) == 1:
        values = values[0]
    if values.ndim != 3 or len(values) % 2:
        raise BrokenFile(f"its {path.name} has shape {values.shape}, expected (8, h, w): mean and standard deviation")
    mean, deviation = _tensor(values, path).chunk(2)
    return mean, deviation


def _array(path: Path, name: str | None) -> np.ndarray:
    """An array of an archive, or the one of an .npy file, mapped; never unpickles anything."""
    try:
        stored: Any = np.load(path, mmap_mode="r" if name is None else None, allow_pickle=False)
        if name is None:
            return stored
        with stored:
            return stored[name]
    except KeyError as error:
        raise BrokenFile(f"its {path.name} has no array {name}") from error
    except ARRAY_DAMAGE as error:
        raise BrokenFile(f"its {path.name} is damaged or no file of numpy arrays: {error}") from error


def _tensor(values: np.ndarray, path: Path) -> Tensor:
    if not np.issubdtype(values.dtype, np.floating) or not np.isfinite(values).all():
        raise BrokenFile(f"its {path.name} holds {values.dtype} values that are not all finite numbers")
    return torch.from_numpy(np.array(values, dtype=np.float32))
