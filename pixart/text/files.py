"""The weights of a T5 encoder on disk: one file, shards or a folder, read tensor by tensor."""
import hashlib
import json
import logging
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from .families import check_family

logger = logging.getLogger(__name__)

FIRST_QUERY = "encoder.block.0.layer.0.SelfAttention.q.weight"
EMBEDDING = "shared.weight"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_SCALES = (".scale_weight", ".weight_scale")        # names of the factor of a scaled float8 weight
_DTYPES = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
_FLOAT8 = tuple(getattr(torch, name) for name in ("float8_e4m3fn", "float8_e5m2") if hasattr(torch, name))


class T5Files:
    """Tensors under their Hugging Face encoder names (`shared.weight`, `encoder.block.0. ...`), whatever holds them.

    Any prefix in front of those names is dropped and everything else in the files (a decoder, another model) ignored.
    Raises FileNotFoundError for missing files, ValueError for damaged ones and for other kinds of model.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.files = find_weights(self.path)
        self.folder = self.files[0].parent
        self.config = _read_config(self.folder)
        if self.path.is_file() and len(self.files) == 1 and self.config.get("model_type") != "t5":
            self.config = {}                        # a folder of many models, and the config of another one
        self._open: dict[Path, _Safetensors | _Pickled] = {}
        everything = {key: file for file in self.files for key in self._file(file).keys()}  # noqa: SIM118
        check_family(everything, self.config, self.path)
        self._places = _hugging_face_names(everything, self.path)
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: self._file(file).shape(key) for name, (file, key) in self._places.items()}

    def read(self, name: str) -> Tensor:
        """The tensor as stored, memory-mapped where the file allows; scaled float8 comes as float32."""
        file, key = self._places[name]
        tensor = self._file(file).tensor(key)
        if tensor.dtype not in _FLOAT8:
            return tensor
        base = name.removesuffix(".weight")
        for scale in (base + ending for ending in _SCALES):
            if scale in self._places:
                file, key = self._places[scale]
                return tensor.float() * self._file(file).tensor(key).float()
        return tensor.float()

    def release(self) -> None:
        """Close the files, so that pages already read leave memory; they open again when needed."""
        self._open.clear()

    def _file(self, file: Path) -> "_Safetensors | _Pickled":
        if file not in self._open:
            self._open[file] = (_Pickled if file.suffix in _PICKLED else _Safetensors)(file)
        return self._open[file]


class _Safetensors:
    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open
        try:
            self._file = safe_open(path, "pt")
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{_what_is_wrong(path)}: {error}") from error
        self.path = path

    def keys(self) -> Iterable[str]:
        return self._file.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        part = self._file.get_slice(key)
        if part.get_dtype() not in _DTYPES:
            raise ValueError(f"{self.path} stores {key} as {part.get_dtype()}: it was quantised by another program. "
                             "Use the original weights in 16 or 32 bits; they are quantised while loading")
        return tuple(part.get_shape())

    def tensor(self, key: str) -> Tensor:
        return self._file.get_tensor(key)


class _Pickled:
    """A PyTorch file, of which nothing but tensors is ever unpickled."""

    def __init__(self, path: Path) -> None:
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except Exception as error:      # pickle, zip, end-of-file and runtime errors, all of them a bad file
            raise ValueError(f"{_what_is_wrong(path)}: {error}") from error
        tensors = tensors.get("state_dict", tensors) if isinstance(tensors, dict) else tensors
        if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
            raise ValueError(f"{path} holds {type(tensors).__name__}, not named tensors; it is not a file of weights")
        self.path = path
        self._tensors = tensors

    def keys(self) -> Iterable[str]:
        return self._tensors.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        if not self._tensors[key].is_floating_point():
            raise ValueError(f"{self.path} stores {key} as {self._tensors[key].dtype}: it was quantised by another "
                             "program. Use the original weights in 16 or 32 bits; they are quantised while loading")
        return tuple(self._tensors[key].shape)

    def tensor(self, key: str) -> Tensor:
        return self._tensors[key]


def _what_is_wrong(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        return f"{path} is only a Git LFS pointer ({path.stat().st_size} bytes); download the file itself"
    if start.startswith(b"GGUF"):
        return f"{path} is a GGUF file; load it with ComfyUI-GGUF, or use the safetensors file of the same T5"
    return (f"{path} cannot be read as weights: it is damaged or its download is incomplete "
            f"({path.stat().st_size} bytes)")


def files_identity(files: Iterable[Path]) -> str:
    """The same text as long as place, size and time of change of all files stay the same."""
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(f"{file.resolve()}|{status.st_size}|{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def find_weights(path: Path) -> list[Path]:
    """The file, or all shards, that `path` (file, shard, index or folder) stands for; every one exists."""
    if path.is_dir():
        return _in_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"no T5 weights at {path}: there is no such file or folder")
    if path.name.endswith(".json"):
        return _in_index(path) if "index" in path.name else _in_folder(path.parent)
    if re.search(r"-\d{5}-of-\d{5}\.", path.name):
        return _in_shards(path)
    if path.suffix not in (".safetensors", *_PICKLED):
        raise ValueError(f"{_what_is_wrong(path)}: expected .safetensors, a PyTorch .bin, or a Hugging Face folder")
    return [path]


def _in_folder(folder: Path) -> list[Path]:
    for inner in (folder, folder / "text_encoder"):
        for suffix in (".safetensors", ".bin"):
            indexes = sorted(inner.glob(f"*{suffix}.index*.json"))
            if indexes:
                return _in_index(indexes[0])
            shards = sorted(inner.glob(f"*-of-?????{suffix}"))
            if shards:
                return _in_shards(shards[0])
            files = [inner / f"{stem}{suffix}" for stem in ("model", "pytorch_model")]
            files = [file for file in files if file.is_file()] or sorted(inner.glob(f"*{suffix}"))
            if files:
                return [_only(files, inner)]
    raise FileNotFoundError(f"no weights in the folder {folder}: expected model.safetensors, shards with their index "
                            "(model-00001-of-0000N.safetensors, pytorch_model-00001-of-0000N.bin), or a text_encoder "
                            "folder with these")


def _only(files: list[Path], folder: Path) -> Path:
    if len(files) > 1:
        raise ValueError(f"{folder} holds {len(files)} files of weights ({', '.join(f.name for f in files[:4])}); "
                         "name the one to load")
    return files[0]


def _in_index(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of shards or is damaged: {error!r}") from error
    return _all_there([index.parent / name for name in names], f"which {index.name} lists")


def _in_shards(shard: Path) -> list[Path]:
    stem, count, end = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})(\..*)", shard.name).groups()
    files = [shard.with_name(f"{stem}-{i:05d}-of-{count}{end}") for i in range(1, int(count) + 1)]
    return _all_there(files, f"which belong to {shard.name}")


def _all_there(files: list[Path], why: str) -> list[Path]:
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(f"{len(missing)} of {len(files)} files, {why}, are missing in {files[0].parent}: "
                                f"{', '.join(missing[:4])}; download them into that folder")
    return files


def _read_config(folder: Path) -> dict:
    """config.json beside the weights, or {} where there is none."""
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} is damaged: it holds {type(config).__name__}, not named settings")
    return config


def _hugging_face_names(keys: Mapping[str, Path], path: Path) -> dict[str, tuple[Path, str]]:
    """Encoder name -> (file, name in the file), for the one T5 encoder that the files hold."""
    prefixes = [key[:-len(FIRST_QUERY)] for key in keys if key.endswith(FIRST_QUERY)]
    if len(prefixes) != 1:
        raise ValueError(f"{path} holds {len(prefixes)} T5 encoders ({', '.join(map(repr, prefixes))}); expected one")
    start = len(prefixes[0])
    ours = (prefixes[0] + "encoder.", prefixes[0] + "shared.")
    places = {key[start:]: (file, key) for key, file in keys.items()
              if key.startswith(ours) and key.endswith((".weight", *_SCALES))}
    if "encoder.embed_tokens.weight" in places:
        places.setdefault(EMBEDDING, places.pop("encoder.embed_tokens.weight"))
    return places
