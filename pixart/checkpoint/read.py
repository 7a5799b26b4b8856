"""The weights of a transformer or ControlNet from a file or a diffusers folder, with the settings beside them."""
import os
from dataclasses import replace
from pathlib import Path

from ..weights.errors import PIXART_FILE
from ..weights.locate import find_files
from ..weights.reader import Weights, open_files, open_weights
from .folder import TRANSFORMER, TRANSFORMER_CLASSES, folder_settings, settings_beside


def open_network(path: str | os.PathLike, ema: bool = False, classes: tuple[str, ...] = TRANSFORMER_CLASSES,
                 expected: str = PIXART_FILE) -> Weights:
    """Map a weight file, the shards of an index, or the network of a diffusers folder whose class is one of `classes`.

    `ema` takes the averaged weights out of a training checkpoint that holds both. Raises CheckpointError, or its
    subclass CheckpointNotFound.
    """
    path = Path(path).expanduser()
    kind = replace(TRANSFORMER, expected=expected)
    if path.is_dir():
        settings = folder_settings(path, classes, expected)
        return replace(open_weights(path, kind, ema), settings=settings)
    files = find_files(path, kind)
    return replace(open_files(files, path, expected, ema), settings=settings_beside(path, files, classes, expected))
