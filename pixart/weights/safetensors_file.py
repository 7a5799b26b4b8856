"""Safetensors files: the header is checked before anything is mapped, the safetensors library does the rest.

All that this program writes in this format is written here.
"""
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files.atomic import replacing
from .errors import CheckpointError
from .settings import LARGEST_JSON, list_of, parse_json, short, whole

WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I64": 8, "I32": 4,
          "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "C64": 8}
SHAPE = list_of(whole(0, 2 ** 48), 16)
OFFSETS = list_of(whole(0, 2 ** 62), 2)


def check_header(path: Path, expected: str) -> None:
    """Compare every entry of the header with the size of the file; CheckpointError where it promises too much."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LARGEST_JSON:
            raise CheckpointError(path, f"a safetensors header of {length} bytes",
                                  f"at most {LARGEST_JSON} bytes there")
        written = file.read(length)
    if len(written) < length:
        raise CheckpointError(path, f"a truncated safetensors file ({size} bytes, its header alone has {length})",
                              expected, "Download it again.")
    header = parse_json(written, path, "its safetensors header")
    _check_metadata(header.pop("__metadata__", {}), path)
    end = max((_check_entry(name, entry, path) for name, entry in header.items()), default=0)
    promised = 8 + length + end
    if size != promised:
        word = "truncated" if size < promised else "damaged"
        raise CheckpointError(path, f"a {word} safetensors file ({size} of {promised} bytes)", expected,
                              "Download it again.")


def _check_metadata(metadata: Any, path: Path) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(path, "__metadata__ in its safetensors header is not a table of texts",
                              "texts by name there")


def _check_entry(name: str, entry: Any, path: Path) -> int:
    """Where the tensor ends; CheckpointError unless type, shape and place agree."""
    if not isinstance(entry, dict):
        raise CheckpointError(path, f"{name} has no description in its safetensors header",
                              "dtype, shape and data_offsets")
    values: tuple[Any, Any, Any] = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    dtype, shape, offsets = values
    for field, value, wanted in (("shape", shape, SHAPE(shape)), ("data_offsets", offsets, OFFSETS(offsets))):
        if wanted or (value is offsets and len(offsets) != 2):
            raise CheckpointError(path, f"{field} of {name} is wrong in its safetensors header",
                                  wanted or "two numbers there")
    if not isinstance(dtype, str) or dtype not in WIDTHS:
        raise CheckpointError(path, f"{name} is stored as {str(dtype)[:20]}", "numbers of 8 to 64 bits",
                              "It was quantised by another program; use the unquantised file.")
    if offsets[1] - offsets[0] != math.prod(shape) * WIDTHS[dtype]:
        raise CheckpointError(path, f"{name} of shape {tuple(shape)} has {offsets[1] - offsets[0]} bytes",
                              f"{math.prod(shape) * WIDTHS[dtype]} bytes", "The file is damaged; download it again.")
    return offsets[1]


def map_safetensors(path: Path, expected: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors as views of the mapped file, and the header's texts."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(path, f"a damaged safetensors file ({short(error)})", expected,
                              "Download it again.") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str] | None = None) -> None:
    """Write a file, complete or not at all, in an existing folder; header: its metadata.

    Raises OSError if that fails: the library's own error for a full disk is not one and does not name the file.
    """
    with replacing(path) as beside:
        try:
            save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, beside,
                      None if header is None else dict(header))
        except SafetensorError as error:
            raise OSError(f"cannot write {path}: {error}. Free disk space or choose another folder; what was written "
                          "before is kept") from error
