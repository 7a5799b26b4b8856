"""What a format of quantised weights is: a matrix (N, K) as several tensors, and the way back.

Shapes: N rows (outputs of the layer), K columns (inputs).
"""
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

QUANTIZATION_MARK = "comfy_quant"  # the tensor beside a quantised weight that tells its format, as JSON
SMOOTHING = "pre_quant_scale"   # (K,): what the layer's input is multiplied by first
FULL_PRECISION = "full_precision_matrix_mult"       # in the mark: the host dequantises weights before it multiplies

FormatOptions = Mapping[str, object]
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Quantized:
    """The quantised weight of one linear layer. `tensors` by their names in the layer: "weight", "weight_scale" ..."""

    format: "Format"
    tensors: dict[str, Tensor]
    options: FormatOptions              # what the mark says beside the format's name

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)"""
        return self.format.shape(self.tensors)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def dequantized(self) -> Tensor:
        """The weight (N, K) as float32."""
        weight = self.format.dequantize(self.tensors, self.options)
        smoothing = self.tensors.get(SMOOTHING)
        return weight if smoothing is None else weight * smoothing.to(weight)

    def entries(self) -> dict[str, Tensor]:
        """All tensors of the layer in a file, the mark included."""
        mark = json.dumps({"format": self.format.name, **self.options}).encode()
        return {**self.tensors, QUANTIZATION_MARK: torch.frombuffer(bytearray(mark), dtype=torch.uint8)}


class Format(ABC):
    """How weights are quantised. Class attributes tell what a file must hold."""

    name: ClassVar[str]                             # what the mark calls it
    storage: ClassVar[torch.dtype]                  # of the tensor "weight"
    scales: ClassVar[dict[str, tuple[torch.dtype, ...]]]        # further tensors that must be there, and their types
    extras: ClassVar[dict[str, tuple[torch.dtype, ...]]] = {}   # those that may be
    multiple: ClassVar[tuple[int, int]] = (1, 1)    # what N and K must be multiples of
    rounds_inputs: ClassVar[bool] = False           # the host always rounds inputs; False: only with its kernels
    columns_per_value: ClassVar[int] = 1            # how many columns one value of the stored weight holds
    runs_in_host: ClassVar[bool] = True             # ComfyUI may have layers that compute with it

    @abstractmethod
    def quantize(self, weight: Tensor, options: FormatOptions) -> dict[str, Tensor]:
        """weight (N, K) float32, finite -> the tensors of the layer."""

    @abstractmethod
    def dequantize(self, tensors: Tensors, options: FormatOptions) -> Tensor:
        """The tensors of a layer -> weight (N, K) float32."""

    @abstractmethod
    def scale_shapes(self, shape: tuple[int, int], options: FormatOptions) -> dict[str, tuple[tuple[int, ...], ...]]:
        """For each tensor beside the weight (N, K), the shapes it may have."""

    def shape(self, tensors: Tensors) -> tuple[int, int]:
        """(N, K) of what `tensors` hold."""
        rows, columns = tensors["weight"].shape
        return rows, columns * self.columns_per_value

    def options_for(self, shape: tuple[int, int]) -> FormatOptions:
        """The settings with which a weight (N, K) is quantised."""
        return {}

    def options_problem(self, options: FormatOptions, shape: tuple[int, int]) -> str:
        """What is wrong with settings that a file has for a weight (N, K); "" if nothing is."""
        return ""

    def why_not(self, shape: tuple[int, int]) -> str:
        """Why a weight (N, K) cannot be quantised; "" if it can."""
        wrong = [f"{side} is {size}, not a multiple of {of}"
                 for side, size, of in zip(("rows", "columns"), shape, self.multiple) if size % of]
        return ", ".join(wrong)

    def problem(self, tensors: Tensors, options: FormatOptions) -> str:
        """What is wrong with the tensors of a layer in a file; "" if nothing is."""
        weight = tensors["weight"]
        if weight.dtype != self.storage or weight.ndim != 2:
            return (f"weight is {kind(weight)} of shape {tuple(weight.shape)} instead of "
                    f"{plain_dtype(self.storage)} (N, K)")
        missing = [name for name in self.scales if name not in tensors]
        if missing:
            return f"{missing[0]} is missing"
        shape = self.shape(tensors)
        if (wrong := self.why_not(shape) or self.options_problem(options, shape)):
            return wrong
        shapes = {SMOOTHING: ((shape[1],),), **self.scale_shapes(shape, options)}
        types = {SMOOTHING: FLOATS, **self.scales, **self.extras}
        for name, tensor in tensors.items():
            if name in shapes and (tuple(tensor.shape) not in shapes[name] or tensor.dtype not in types[name]):
                return (f"{name} is {kind(tensor)} of shape {tuple(tensor.shape)} instead of "
                        f"{' or '.join(map(plain_dtype, types[name]))} of shape {' or '.join(map(str, shapes[name]))}")
        return ""


FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def plain_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def kind(tensor: Tensor) -> str:
    return plain_dtype(tensor.dtype)


def positive_option(options: FormatOptions, name: str, default: int) -> int:
    """A positive integer in the settings of a mark, which some writers nest in "params"; 0 for anything else."""
    below = options.get("params")
    value = options.get(name, below.get(name, default) if isinstance(below, Mapping) else default)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
