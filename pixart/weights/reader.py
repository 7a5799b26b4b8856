"""Weights from any file or folder, mapped: nothing is read before something touches it, no code of a file ever runs."""
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import CheckpointError
from .locate import Kind, find_files
from .safetensors_file import check_header, map_safetensors
from .torch_file import map_torch, read_torch

# Bytes that may be copied out of a mapping before it is dropped. Pages that were read count as memory of this
# process for as long as the mapping lives.
RELEASE_AFTER = 64 << 20
MOST_NAME = 512             # characters of a tensor's name
HEADS_OF_OTHER_FILES = {
    b"version https://git-lfs": ("a Git LFS pointer, not the weights", "Fetch the file with `git lfs pull`."),
    b"GGUF": ("a GGUF file", "Load the unquantised weights instead, or use ComfyUI-GGUF."),
    b"<": ("a web page, not weights", "The download went wrong; download the file itself, not the page about it."),
}

Remap = Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Weights:
    """Named tensors of one or several files.

    `tensors` are views of files mapped for as long as these live; `metadata` the texts of safetensors headers;
    `settings` the checked entries of config.json and the like beside the files.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    remap: Remap                                        # the same tensors from a new mapping
    metadata: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


class ShortLived:
    """Tensors for immediate copying: the mapping is renewed now and then, which frees the pages that were read."""

    def __init__(self, remap: Remap) -> None:
        self.remap, self.read = remap, 0
        self.tensors: Mapping[str, Tensor] = remap()

    def __getitem__(self, name: str) -> Tensor:
        if self.read > RELEASE_AFTER:
            self.tensors = {}
            self.tensors, self.read = self.remap(), 0
        tensor = self.tensors[name]
        self.read += tensor.nbytes
        return tensor


def open_weights(path: str | os.PathLike, kind: Kind, ema: bool = False) -> Weights:
    """Map the weights at a path: a file, a shard, an index, or a folder.

    kind: what is looked for, for folders and messages. ema: take the averaged weights out of a training checkpoint
    that holds both. Raises CheckpointError, or its subclass CheckpointNotFound.
    """
    path = Path(path).expanduser()
    return open_files(find_files(path, kind), path, kind.expected, ema)


def open_files(files: Iterable[Path], path: Path, expected: str, ema: bool = False) -> Weights:
    """Map files that together hold one model; `path` names them in errors."""
    mapped = [_open_file(file, expected, ema) for file in files]
    if not any(tensors for tensors, _, _ in mapped):
        raise CheckpointError(path, "no tensor in it", expected)

    def remap() -> dict[str, Tensor]:
        return {name: tensor for _, _, again in mapped for name, tensor in again().items()}

    tensors = {name: tensor for tensors, _, _ in mapped for name, tensor in tensors.items()}
    long = next((name for name in tensors if len(name) > MOST_NAME), None)
    if long is not None:
        raise CheckpointError(path, f"a tensor with a name of {len(long)} characters", expected)
    metadata = {key: value for _, header, _ in mapped for key, value in header.items()}
    return Weights(path, tensors, remap, metadata)


def _open_file(path: Path, expected: str, ema: bool) -> tuple[dict[str, Tensor], dict[str, str], Remap]:
    """Tensors, header and a function that maps the same file anew."""
    kind = sniff(path, expected)
    if kind == "safetensors":
        check_header(path, expected)
        tensors, metadata = map_safetensors(path, expected)
        return tensors, metadata, lambda: map_safetensors(path, expected)[0]
    stored = read_torch(path, expected, kind == "zip", ema)
    remap = partial(map_torch, path, stored, kind == "zip", expected)
    return remap(), {}, remap


def sniff(path: Path, expected: str) -> str:
    """Tell "safetensors", "zip" or "pickle" by the first bytes, whatever the file is called."""
    if not path.is_file():
        raise CheckpointError(path, "no plain file", expected)
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise CheckpointError(path, "an empty file", expected, "Download it again.")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 48:       # eight letters give a larger number
        return "safetensors"
    for start, (found, todo) in HEADS_OF_OTHER_FILES.items():
        if head.lstrip().startswith(start):
            raise CheckpointError(path, found, expected, todo)
    if head.startswith(b"PK"):
        return "zip"
    if head.startswith(b"\x80"):
        return "pickle"
    raise CheckpointError(path, f"neither safetensors nor torch weights, its first bytes are {head[:8]!r}", expected)
