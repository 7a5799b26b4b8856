"""A linear layer that keeps its weight quantised and dequantises it whenever it runs."""
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .format import Quantized


class QuantizedLinear(nn.Module):
    """As nn.Linear with the dequantised weight, in the dtype of its input, with the memory of the quantised one."""

    bias: Tensor | None

    def __init__(self, quantized: Quantized, bias: Tensor | None) -> None:
        super().__init__()
        self.format, self.options = quantized.format, quantized.options
        self.out_features, self.in_features = quantized.shape
        for name, tensor in quantized.tensors.items():
            self.register_buffer(name, tensor, persistent=False)         # state dicts have plain weights
        self.names = tuple(quantized.tensors)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Quantised tensors follow the model to a device but are never cast, which would change their meaning."""
        kept = {name: getattr(self, name) for name in self.names}
        super()._apply(fn, recurse)
        for name, tensor in kept.items():
            if (moved := getattr(self, name)).dtype != tensor.dtype:
                setattr(self, name, tensor.to(moved.device))
        return self

    def dequantized(self) -> Tensor:
        """The weight (out, in) float32, new at every call."""
        return Quantized(self.format, {name: getattr(self, name) for name in self.names}, self.options).dequantized()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        return F.linear(x, self.dequantized().to(x.dtype), self.bias)


def keep_quantized(model: nn.Module, layers: Mapping[str, Quantized], device: torch.device | str = "cpu") -> None:
    """In place: replace the model's linear layers of these names by quantised ones, with the same biases."""
    for name, quantized in layers.items():
        parent, _, leaf = name.rpartition(".")
        bias = getattr(model.get_submodule(name), "bias", None)
        moved = Quantized(quantized.format, {own: tensor.to(device) for own, tensor in quantized.tensors.items()},
                          quantized.options)
        setattr(model.get_submodule(parent), leaf, QuantizedLinear(moved, bias))
