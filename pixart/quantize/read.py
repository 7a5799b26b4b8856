"""Quantised layers in a file: found by their marks, checked, and dequantised one at a time, as tensors are read.

A mark is the tensor `comfy_quant` beside a weight, or an entry of `_quantization_metadata` in the safetensors header;
older files have one tensor `scaled_fp8` and scales by other names. Source: ComfyUI, comfy/utils.py.
"""
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..weights.errors import PIXART_FILE, CheckpointError
from ..weights.reader import Weights
from ..weights.settings import parse_json
from ..weights.values import check_finite
from .format import FLOATS, FULL_PRECISION, QUANTIZATION_MARK, SMOOTHING, Format, Quantized, Tensors
from .formats import FORMATS

QUANTIZATION_HEADER = "_quantization_metadata"
OLD_MARK = "scaled_fp8"
OLD_SCALES = {"scale_weight": "weight_scale", "scale_input": "input_scale"}
LONGEST_MARK = 1 << 12          # bytes of a mark


@dataclass(frozen=True)
class QuantizedLayer:
    """Where a layer's tensors lie in a file, and how they are quantised."""

    format: Format
    options: dict[str, Any]
    names: dict[str, str]               # name in the layer, such as "weight_scale" -> name in the file

    def of(self, tensors: Tensors) -> Quantized:
        """The layer, out of all tensors of the file."""
        return Quantized(self.format, {own: tensors[name] for own, name in self.names.items()}, self.options)


@dataclass(frozen=True)
class QuantizedWeights(Weights):
    """Weights of which some are quantised: in `tensors` these have their shape but no numbers (device "meta").

    `remap` gives their numbers, dequantised one by one; `layers` tells where they are, by the name of the layer.
    """

    layers: dict[str, QuantizedLayer] = field(default_factory=dict)
    raw: Mapping[str, Tensor] = field(default_factory=dict)         # everything as it lies in the file

    def quantized(self, layer: str) -> Quantized:
        """A layer as it lies in the file. CheckpointError where its tensors or its weight hold NaN or infinity."""
        found = self.layers[layer].of(self.raw)
        for own, tensor in found.tensors.items():
            check_finite(f"{layer}.{own}", tensor, self.path, PIXART_FILE)
        check_finite(f"{layer}.weight, dequantised,", found.dequantized(), self.path, PIXART_FILE)
        return found


class Dequantized(Mapping[str, Tensor]):
    """Tensors of a file by name, quantised ones dequantised as they are asked for, as float32."""

    def __init__(self, raw: Tensors, layers: Mapping[str, QuantizedLayer], names: tuple[str, ...]) -> None:
        self.raw, self.layers, self.names = raw, layers, names

    def __getitem__(self, name: str) -> Tensor:
        layer = self.layers.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        return self.raw[name] if layer is None else layer.of(self.raw).dequantized()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def with_dequantized(weights: Weights, expected: str = PIXART_FILE, beside: tuple[str, ...] = ()) -> Weights:
    """The same weights with quantised layers as plain ones; as they are where nothing is quantised.

    beside: prefixes of other models in the file, whose layers stay as they are, in whatever format.
    Raises CheckpointError for an unknown format, a missing or wrong scale, or wrong settings, by layer and file.
    """
    layers = {name: placed(name, told, weights, expected) for name, told in marks(weights, expected).items()
              if not name.startswith(beside)}
    if not layers:
        return weights
    used = {name for layer in layers.values() for own, name in layer.names.items() if own != "weight"}
    used |= {f"{layer}.{QUANTIZATION_MARK}" for layer in layers}
    used |= {name for name in weights.tensors if is_old_mark(name)}
    shown = {name: tensor for name, tensor in weights.tensors.items() if name not in used}
    for name, layer in layers.items():
        shape = layer.of(weights.tensors).shape
        shown[f"{name}.weight"] = torch.empty(shape, dtype=dtype_of_layer(name, weights.tensors), device="meta")
    names = tuple(shown)
    return QuantizedWeights(weights.path, shown, lambda: Dequantized(weights.remap(), layers, names), weights.metadata,
                            weights.settings, layers, weights.tensors)


def marks(weights: Weights, expected: str) -> dict[str, dict[str, Any]]:
    """The marks of a file's quantised layers, by their names.

    One file may hold several models, each with marks of its own kind, such as a T5 encoder beside the transformer.
    """
    found: dict[str, dict[str, Any]] = {}
    for old in sorted((name for name in weights.tensors if is_old_mark(name)), key=len):    # the longest prefix wins
        found |= old_marks(old, weights.tensors)
    found |= {name.removesuffix(f".{QUANTIZATION_MARK}"): read_mark(name, tensor, weights)
              for name, tensor in weights.tensors.items() if name.endswith(f".{QUANTIZATION_MARK}")}
    return found | header_marks(weights, expected)


def header_marks(weights: Weights, expected: str) -> dict[str, dict[str, Any]]:
    """The marks in the safetensors header."""
    if QUANTIZATION_HEADER not in weights.metadata:
        return {}
    written = parse_json(weights.metadata[QUANTIZATION_HEADER], weights.path,
                         f"{QUANTIZATION_HEADER} of its header").get("layers")
    if not isinstance(written, dict) or not all(isinstance(each, dict) for each in written.values()):
        raise CheckpointError(weights.path, f"{QUANTIZATION_HEADER} of its header names no layers", expected)
    return written


def read_mark(name: str, tensor: Tensor, weights: Weights) -> dict[str, Any]:
    if tensor.dtype != torch.uint8 or tensor.ndim != 1 or len(tensor) > LONGEST_MARK:
        raise CheckpointError(weights.path, f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}",
                              "the bytes of a text there")
    return parse_json(bytes(tensor.tolist()), weights.path, name)


def is_old_mark(name: str) -> bool:
    return name == OLD_MARK or name.endswith(f".{OLD_MARK}")


def old_marks(mark: str, tensors: Tensors) -> dict[str, dict[str, Any]]:
    """The marks of files that keep their type in one tensor `scaled_fp8`; float32 there stands for E4M3."""
    prefix, kind = mark.removesuffix(OLD_MARK), tensors[mark].dtype
    known: dict[str, Any] = {"format": "float8_e5m2" if kind == torch.float8_e5m2 else "float8_e4m3fn"}
    if tensors[mark].numel() == 2:
        known[FULL_PRECISION] = True
    return {name.removesuffix(".scale_weight"): dict(known) for name in tensors
            if name.startswith(prefix) and name.endswith(".scale_weight")}


def placed(layer: str, told: dict[str, Any], weights: Weights, expected: str) -> QuantizedLayer:
    """A layer's tensors, checked against what its mark says."""
    path, tensors = weights.path, weights.tensors
    name = told.get("format")
    if not isinstance(name, str) or name not in FORMATS:
        raise CheckpointError(path, f"{layer} is quantised as {str(name)[:40]}", f"one of {', '.join(FORMATS)}",
                              "Use another file of this model, or a newer version of this extension.")
    form = FORMATS[name]
    wanted = ("weight", *form.scales, *form.extras, SMOOTHING)
    names = {own: f"{layer}.{own}" for own in wanted if f"{layer}.{own}" in tensors}
    names |= {OLD_SCALES[old]: f"{layer}.{old}" for old in OLD_SCALES if f"{layer}.{old}" in tensors}
    if "weight" not in names:
        raise CheckpointError(path, f"{layer}.weight is missing, which the file says is quantised as {name}", expected)
    found = QuantizedLayer(form, {key: value for key, value in told.items() if key != "format"}, names)
    if (problem := form.problem(found.of(tensors).tensors, found.options)):
        raise CheckpointError(path, f"{layer} is quantised as {name}, but {problem}", expected,
                              "The file is incomplete or damaged; use the original weights, or quantise them anew.")
    return found


def dtype_of_layer(layer: str, tensors: Tensors) -> torch.dtype:
    """The data type to report for the weight: the type of the layer's bias, bfloat16 without one."""
    bias = tensors.get(f"{layer}.bias")
    return bias.dtype if bias is not None and bias.dtype in FLOATS else torch.bfloat16
