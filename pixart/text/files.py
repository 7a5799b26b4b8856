"""The weights of a T5 encoder on disk: one file, shards or a folder, read tensor by tensor."""
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..quantize.format import QUANTIZATION_MARK
from ..quantize.read import QuantizedWeights, with_dequantized
from ..weights.errors import CheckpointError
from ..weights.locate import Kind, find_files
from ..weights.reader import Weights, open_files
from ..weights.settings import Check, checked_entries, number, one_of, read_json, table, text, whole
from ..weights.values import EIGHT_BITS, check_finite, check_floating
from .families import check_t5_family

FIRST_QUERY = "encoder.block.0.layer.0.SelfAttention.q.weight"
EMBEDDING = "shared.weight"
T5_FILE = "the T5 v1.1 XXL encoder (t5xxl_fp16.safetensors, or the text_encoder folder of a PixArt release)"
T5_KIND = Kind(T5_FILE, "text_encoder", ("model", "pytorch_model"))
T5_CONFIG_FIELDS: dict[str, Check] = {"model_type": text, "tokenizer_class": text, "quantization_config": table,
                                      "relative_attention_max_distance": whole(2, 1 << 20),
                                      "layer_norm_epsilon": number(0, 1),
                                      "feed_forward_proj": one_of("gated-gelu", "gated-gelu_new", "gated-silu",
                                                                  "gated-relu", "relu", "gelu")}
_SCALES = (".scale_weight", ".weight_scale")        # names of the factor of a scaled float8 weight


class T5Files:
    """Tensors under their Hugging Face encoder names (`shared.weight`, `encoder.block.0. ...`), from any kind of file.

    Any prefix in front of those names is dropped and everything else in the files (a decoder, another model) ignored.
    Raises CheckpointError, a ValueError, for damaged files and other kinds of model; it is a FileNotFoundError too
    where something is missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.files = list(find_files(self.path, T5_KIND))
        self.folder = self.files[0].parent
        self.config = _read_config(self.folder)
        if self.path.is_file() and len(self.files) == 1 and self.config.get("model_type") != "t5":
            self.config = {}                        # a folder of many models, and the config of another one
        weights = open_files(self.files, self.path, T5_FILE)
        check_t5_family(weights.tensors, self.config, self.path)
        weights = with_text_dequantized(weights)
        self.quantized = isinstance(weights, QuantizedWeights)
        self._remap = weights.remap
        self._mapped: Mapping[str, Tensor] = {}
        self._places = hugging_face_names(weights.tensors, self.path)
        for key in self._places.values():
            check_floating(key, weights.tensors[key], self.path, T5_FILE)
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: tuple(weights.tensors[key].shape) for name, key in self._places.items()}

    def read(self, name: str) -> Tensor:
        """The tensor as stored, memory-mapped where the file allows; scaled float8 and quantised layers as float32.

        Raises CheckpointError where a number is not finite.
        """
        tensor = self._tensor(name)
        check_finite(self._places[name], tensor, self.path, T5_FILE, torch.bfloat16)      # it is computed in
        if tensor.dtype not in EIGHT_BITS:
            return tensor
        base = name.removesuffix(".weight")
        scale = next((base + ending for ending in _SCALES if base + ending in self._places), None)
        if scale is None:
            return tensor.float()
        scaled = tensor.float() * self._scale(scale)
        check_finite(f"{self._places[name]}, scaled,", scaled, self.path, T5_FILE, torch.bfloat16)
        return scaled

    def _scale(self, name: str) -> Tensor:
        scale = self._tensor(name).float()
        check_finite(self._places[name], scale, self.path, T5_FILE)
        if scale.numel() != 1:
            raise CheckpointError(self.path, f"{self._places[name]} has shape {tuple(scale.shape)}",
                                  "one number for each weight", "It was quantised by another program; use the original "
                                  "weights.")
        return scale.reshape(())

    def _tensor(self, name: str) -> Tensor:
        if not self._mapped:
            self._mapped = self._remap()
        return self._mapped[self._places[name]]

    def release(self) -> None:
        """Drop the mapping, so that pages already read leave memory; it is made again when needed."""
        self._mapped = {}


def with_text_dequantized(weights: Weights) -> Weights:
    """The encoder's own tensors, quantised layers (those with a mark beside them) as plain ones.

    Other models in the same file are left out, however they are quantised.
    """
    prefix = next((key[:-len(FIRST_QUERY)] for key in weights.tensors if key.endswith(FIRST_QUERY)), None)
    if prefix is None or not any(key.endswith(f".{QUANTIZATION_MARK}") for key in weights.tensors):
        return weights
    own = {key: tensor for key, tensor in weights.tensors.items() if key.startswith(prefix)}
    return with_dequantized(replace(weights, tensors=own, metadata={}), T5_FILE)


def files_identity(files: Iterable[Path]) -> str:
    """A fingerprint that changes with the path, size or modification time of any of the files."""
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(f"{file.resolve()}|{status.st_size}|{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _read_config(folder: Path) -> dict[str, Any]:
    """The entries of config.json beside the weights that matter, or {} where there is none."""
    path = folder / "config.json"
    if not path.is_file():
        return {}
    config = read_json(path)
    model = config.get("model_type")
    if isinstance(model, str) and model != "t5":
        return {"model_type": model[:40]}           # of another model, whose entries mean something else
    present = {name: value for name, value in config.items() if value is not None}
    return checked_entries(present, T5_CONFIG_FIELDS, path, "config.json") or {"model_type": "t5"}


def hugging_face_names(keys: Iterable[str], path: Path) -> dict[str, str]:
    """Encoder name -> name in the file, for the one T5 encoder that the files hold."""
    keys = list(keys)
    prefixes = [key[:-len(FIRST_QUERY)] for key in keys if key.endswith(FIRST_QUERY)]
    if len(prefixes) != 1:
        raise CheckpointError(path, f"{len(prefixes)} T5 encoders ({', '.join(map(repr, prefixes[:4]))})",
                              f"one, {T5_FILE}")
    start = len(prefixes[0])
    ours = (prefixes[0] + "encoder.", prefixes[0] + "shared.")
    places = {key[start:]: key for key in keys if key.startswith(ours) and key.endswith((".weight", *_SCALES))}
    if "encoder.embed_tokens.weight" in places:
        places.setdefault(EMBEDDING, places.pop("encoder.embed_tokens.weight"))
    return places
