"""Safe, memory-mapped reading of weight files and folders: no code of a file ever runs.

Tensors are views of the mapped file; nothing is read before something touches them.
"""
import json
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import CheckpointError
from .folder import TRANSFORMER_CLASSES, locate

# Bytes that may be copied out of a mapping before it is dropped. Pages that were read count as memory of this
# process for as long as the mapping lives.
RELEASE_AFTER = 64 << 20
NESTS = ("state_dict", "model", "module", "state_dict_ema", "ema")
EMA_NESTS = ("state_dict_ema", "ema", "model_ema")
HEADS_OF_OTHER_FILES = {
    b"version https://git-lfs": ("a Git LFS pointer, not the weights", "Fetch the file with `git lfs pull`."),
    b"GGUF": ("a GGUF file", "Load the unquantised weights instead."),
    b"<": ("a web page, not weights", "The download went wrong; download the file itself, not the page about it."),
}


@dataclass(frozen=True)
class Weights:
    """Named tensors of one or several files.

    `tensors` are views of files mapped for as long as these live; `settings` is the config.json beside them, if any.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    remap: Callable[[], Mapping[str, Tensor]]           # the same tensors from a new mapping
    metadata: dict[str, str] = field(default_factory=dict)
    settings: dict = field(default_factory=dict)


class ShortLived:
    """Tensors to be copied at once: their mapping is dropped now and then, and with it the pages that were read."""

    def __init__(self, weights: Weights) -> None:
        self.weights, self.tensors, self.read = weights, weights.remap(), 0

    def __getitem__(self, name: str) -> Tensor:
        if self.read > RELEASE_AFTER:
            self.tensors = {}
            self.tensors, self.read = self.weights.remap(), 0
        tensor = self.tensors[name]
        self.read += tensor.nbytes
        return tensor


def open_weights(path: str | os.PathLike, ema: bool = False,
                 classes: tuple[str, ...] = TRANSFORMER_CLASSES) -> Weights:
    """Map a weight file, the shards of an index, or the network of a diffusers folder whose class is one of `classes`.

    `ema` takes the averaged weights out of a training checkpoint that holds both. Raises CheckpointError, or its
    subclass CheckpointNotFound.
    """
    location = locate(Path(path).expanduser(), classes)
    mapped = [_open_file(file, ema) for file in location.files]
    if not any(tensors for tensors, _, _ in mapped):
        raise CheckpointError(location.path, "no tensor in it")

    def remap() -> dict[str, Tensor]:
        return {name: tensor for _, _, again in mapped for name, tensor in again().items()}

    tensors = {name: tensor for tensors, _, _ in mapped for name, tensor in tensors.items()}
    metadata = {key: value for _, header, _ in mapped for key, value in header.items()}
    return Weights(location.path, tensors, remap, metadata, location.settings)


def _open_file(path: Path, ema: bool) -> tuple[dict[str, Tensor], dict[str, str], Callable[[], dict[str, Tensor]]]:
    """Tensors, header and a function that maps the same file anew."""
    kind = sniff(path)
    if kind == "safetensors":
        _check_safetensors(path)
        tensors, metadata = _map_safetensors(path)
        return tensors, metadata, lambda: _map_safetensors(path)[0]
    if path.suffix == ".safetensors":       # torch goes by the name and would take it for safetensors
        raise CheckpointError(path, "a torch file under the name .safetensors", todo="Rename it to .pth.")
    tensors = _unwrap(_load_torch(path, mapped=kind == "zip"), path, ema)
    if kind == "zip":
        return tensors, {}, lambda: _unwrap(_load_torch(path, mapped=True), path, ema)
    return tensors, {}, lambda: tensors     # torch files of before 2020 cannot be mapped; they are in memory


def sniff(path: Path) -> str:
    """Tell "safetensors", "zip" or "pickle" by the first bytes, whatever the file is called."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise CheckpointError(path, "an empty file", todo="Download it again.")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < max(size, 100 << 20):
        return "safetensors"
    for start, (found, todo) in HEADS_OF_OTHER_FILES.items():
        if head.lstrip().startswith(start):
            raise CheckpointError(path, found, todo=todo)
    if head.startswith(b"PK"):
        return "zip"
    if head.startswith(b"\x80"):
        return "pickle"
    raise CheckpointError(path, f"neither safetensors nor torch weights, its first bytes are {head[:8]!r}")


def _check_safetensors(path: Path) -> None:
    """Compare the size of the file with what its header promises."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length)
    try:
        if len(text) < length:
            raise ValueError("header cut off")
        header = json.loads(text)
        promised = 8 + length + max((entry["data_offsets"][1] for name, entry in header.items()
                                     if name != "__metadata__"), default=0)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(path, f"a damaged or truncated safetensors file ({size} bytes, its header is unreadable)",
                              todo="Download it again.") from error
    if size < promised:
        raise CheckpointError(path, f"a truncated safetensors file ({size} of {promised} bytes)",
                              todo="Download it again.")


def _map_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})
    except SafetensorError as error:
        raise CheckpointError(path, f"a damaged safetensors file ({error})", todo="Download it again.") from error


def _load_torch(path: Path, mapped: bool) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            path, f"a pickle that holds more than weights; it was refused and nothing in it ran "
                  f"({_first_line(error)})", "tensors only",
            "Get it as .safetensors, or from someone you trust who saves only the state dict.") from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(path, f"a truncated or damaged torch file ({_first_line(error)})",
                              todo="Download it again.") from error


def _first_line(error: Exception) -> str:
    """The sentence that says what was wrong, without torch's page of advice about switching safety off."""
    text = str(error)
    for line in text.splitlines():
        if "Unsupported" in line or "GLOBAL" in line:
            return line.strip()[:160]
    return (text.strip().splitlines() or [type(error).__name__])[0][:160]


def _unwrap(content: object, path: Path, ema: bool) -> dict[str, Tensor]:
    """Take the table of weights out of what trainers put around it."""
    if ema and not (isinstance(content, Mapping) and any(name in content for name in EMA_NESTS)):
        raise CheckpointError(path, "no averaged weights in it", " or ".join(EMA_NESTS), "Load it without ema.")
    nests = EMA_NESTS + NESTS if ema else NESTS
    while isinstance(content, Mapping):
        inner = next((content[name] for name in nests if isinstance(content.get(name), Mapping)), None)
        if inner is None and len(content) == 1 and isinstance(next(iter(content.values())), Mapping):
            inner = next(iter(content.values()))
        if inner is None:
            return {name: value for name, value in content.items() if isinstance(value, Tensor)}
        content = inner
    raise CheckpointError(path, f"a {type(content).__name__}, not a table of weights")
