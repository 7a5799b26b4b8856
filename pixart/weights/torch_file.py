"""Files of torch.save, zip archives and the older single stream: tensors as views of the mapped file, no code run.

A storage that is shorter than its tensor is refused: other bytes of the file would be read as weights.
"""
import math
import mmap
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from pathlib import Path

import torch
from torch import Tensor

from .errors import CheckpointError
from .pickles import LARGEST_PICKLE, Name, NotWeights, StoredStorage, StoredTensor, read_pickle
from .settings import short

MAGIC = 0x1950A86A20F9469CFC6C           # first pickle of the older stream
LOCAL_HEADER = struct.Struct("<4s22xHH")
BROKEN = (zipfile.BadZipFile, NotImplementedError, ValueError, RuntimeError, KeyError, EOFError, OSError, struct.error)
NESTS = ("state_dict", "model", "module", "state_dict_ema", "ema")
EMA_NESTS = ("state_dict_ema", "ema", "model_ema")
MOST_SHARED = 3                          # times the file's size: tensors may share storages, as embeddings do
DEEPEST_NESTING = 8                      # tables inside of tables around the weights


@dataclass(frozen=True)
class Extent:
    """Where a storage lies in the file, in bytes."""

    start: int
    size: int


def read_torch(path: Path, expected: str, zipped: bool, ema: bool) -> dict[str, StoredTensor]:
    """Names and descriptions of the weights in a file, without what trainers put around them."""
    try:
        content = read_pickle(BytesIO(_zip_pickle(path))) if zipped else _stream(path)[0]
    except NotWeights as error:
        raise CheckpointError(path, f"a pickle that holds more than weights ({error}); it was refused and nothing in "
                              "it ran", f"{expected}, tensors only", "Get it as .safetensors, or from someone you "
                              "trust who saves only the state dict.") from error
    except BROKEN as error:
        raise CheckpointError(path, f"a truncated or damaged torch file ({short(error)})", expected,
                              "Download it again.") from error
    return unwrap(content, path, expected, ema)


def map_torch(path: Path, stored: Mapping[str, StoredTensor], zipped: bool, expected: str) -> dict[str, Tensor]:
    """The tensors themselves, views of a copy-on-write mapping: changing them leaves the file as it is."""
    try:
        places = _zip_places(path) if zipped else _stream_places(path)
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except BROKEN as error:
        raise CheckpointError(path, f"a truncated or damaged torch file ({short(error)})", expected,
                              "Download it again.") from error
    claimed = sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in stored.values())
    if claimed > MOST_SHARED * len(mapped):
        raise CheckpointError(path, f"its tensors are {claimed // len(mapped)} times larger than the file", expected)
    return {name: _view(mapped, tensor, places.get(tensor.storage.key), name, path, expected)
            for name, tensor in stored.items()}


def _view(mapped: mmap.mmap, tensor: StoredTensor, place: Extent | None, name: str, path: Path,
          expected: str) -> Tensor:
    size = tensor.dtype.itemsize
    promised = tensor.storage.elements * bytes_each(tensor.storage)
    if place is None or place.size < promised:
        found = f"{place.size} of {promised} bytes" if place else "no bytes at all"
        raise CheckpointError(path, f"{name[:80]} has {found} in the file", expected,
                              "The file is damaged; download it again.")
    count = math.prod(tensor.shape)
    if len(tensor.shape) != len(tensor.stride) or count > max(promised // size, 1):
        raise CheckpointError(path, f"{name[:80]} is larger than what is stored of it", expected)
    if count == 0:
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride, strict=True))
    if (last + 1) * size > promised:
        raise CheckpointError(path, f"{name[:80]} reaches beyond what is stored of it", expected)
    numbers = torch.frombuffer(mapped, dtype=tensor.dtype, count=last + 1, offset=place.start)
    return numbers.as_strided(tensor.shape, tensor.stride, tensor.offset)


def bytes_each(stored: StoredStorage) -> int:
    """Bytes of an element of a storage; 1 for an untyped one."""
    return 1 if stored.dtype is None else stored.dtype.itemsize


def _records(archive: zipfile.ZipFile) -> tuple[str, list[zipfile.ZipInfo]]:
    """The folder inside the archive that holds everything, and its entries."""
    entries = archive.infolist()
    found = [entry.filename for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
    if len(found) != 1:
        raise ValueError("a zip archive without a data.pkl, not of torch.save")
    folder = found[0].removesuffix("data.pkl")
    names = {entry.filename for entry in entries}
    if f"{folder}constants.pkl" in names:
        raise ValueError("a TorchScript program, not weights")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries if entry.filename.startswith(folder)):
        raise ValueError("its content is compressed, which torch.save never does")
    return folder, entries


def _zip_pickle(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        folder, _ = _records(archive)
        if archive.getinfo(f"{folder}data.pkl").file_size > LARGEST_PICKLE:
            raise ValueError(f"its table of names has more than {LARGEST_PICKLE} bytes")
        if f"{folder}byteorder" in archive.namelist():
            with archive.open(f"{folder}byteorder") as file:
                if file.read(16) != b"little":
                    raise ValueError("its numbers have another byte order")
        with archive.open(f"{folder}data.pkl") as file:
            return file.read(LARGEST_PICKLE)


def _zip_places(path: Path) -> dict[str, Extent]:
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        folder, entries = _records(archive)
        return {entry.filename.removeprefix(f"{folder}data/"): _place(entry, file) for entry in entries
                if entry.filename.startswith(f"{folder}data/")}


def _place(entry: zipfile.ZipInfo, file: BufferedReader) -> Extent:
    """Where an entry's data lies: behind its local header, which may be longer than the archive's directory says."""
    file.seek(entry.header_offset)
    mark, name, extra = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    if mark != b"PK\x03\x04":
        raise ValueError("its directory points nowhere")
    start = entry.header_offset + LOCAL_HEADER.size + name + extra
    end = file.seek(0, 2)
    return Extent(start, max(0, min(entry.file_size, end - start)))


def _stream(path: Path) -> tuple[object, list[object], int]:
    """Content, keys of the storages in their order, and where the first one begins."""
    with path.open("rb") as file:
        stream = BytesIO(file.read(LARGEST_PICKLE))
    if read_pickle(stream) != MAGIC:
        raise NotWeights("a plain pickle, not made by torch.save")
    read_pickle(stream), read_pickle(stream)                      # version, and facts about the machine
    content, keys = read_pickle(stream), read_pickle(stream)
    if not isinstance(keys, list):
        raise ValueError("a stream without a list of storages")
    return content, keys, stream.tell()


def _stream_places(path: Path) -> dict[str, Extent]:
    """Each storage is preceded by its number of elements."""
    content, keys, at = _stream(path)
    known = {each.key: each for each in storages(content)}
    places, end = {}, path.stat().st_size
    with path.open("rb") as file:
        for key in keys:
            stored = known.get(key) if isinstance(key, str) else None
            if stored is None:
                raise ValueError("a storage that no tensor uses")
            file.seek(at)
            count = struct.unpack("<q", file.read(8))[0]
            size = count * bytes_each(stored)
            if count < 0 or at + 8 + size > end:
                raise ValueError("it ends within its numbers")
            places[stored.key] = Extent(at + 8, size)
            at += 8 + size
    return places


def storages(content: object) -> Iterator[StoredStorage]:
    """Every storage that anything in a pickle's content uses; tables that contain themselves are walked once."""
    waiting, seen = [content], set()
    while waiting:
        each = waiting.pop()
        if isinstance(each, StoredTensor):
            yield each.storage
        elif isinstance(each, StoredStorage):
            yield each
        elif isinstance(each, (dict, list, tuple)) and id(each) not in seen:
            seen.add(id(each))
            waiting.extend(each.values() if isinstance(each, dict) else each)


def unwrap(content: object, path: Path, expected: str, ema: bool) -> dict[str, StoredTensor]:
    """Take the table of weights out of what trainers put around it."""
    if ema and not (isinstance(content, dict) and any(name in content for name in EMA_NESTS)):
        raise CheckpointError(path, "no averaged weights in it", " or ".join(EMA_NESTS), "Load it without ema.")
    nests = EMA_NESTS + NESTS if ema else NESTS
    for _ in range(DEEPEST_NESTING):
        if not isinstance(content, dict):
            break
        inner = next((content[name] for name in nests if isinstance(content.get(name), dict)), None)
        if inner is None and len(content) == 1 and isinstance(next(iter(content.values())), dict):
            inner = next(iter(content.values()))
        if inner is None:
            return _tensors(content, path, expected)
        content = inner
    else:
        raise CheckpointError(path, f"tables within tables, more than {DEEPEST_NESTING} deep", expected)
    kind = "tensor" if isinstance(content, StoredTensor) else f"{content}" if isinstance(
        content, Name) else type(content).__name__
    raise CheckpointError(path, f"a {kind}, not a table of weights", expected)


def _tensors(content: dict, path: Path, expected: str) -> dict[str, StoredTensor]:
    tensors = {name: value for name, value in content.items() if isinstance(value, StoredTensor)}
    strange = next((name for name in tensors if not isinstance(name, str)), None)
    if strange is not None:
        raise CheckpointError(path, f"a table of tensors with the number {strange} for a name", expected)
    return tensors
