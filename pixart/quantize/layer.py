"""A linear layer that keeps its weight packed and unpacks it whenever it runs."""
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .format import Packed


class PackedLinear(nn.Module):
    """As nn.Linear with the unpacked weight, in the dtype of its input, with the memory of the packed one."""

    bias: Tensor | None

    def __init__(self, packed: Packed, bias: Tensor | None) -> None:
        super().__init__()
        self.format, self.options = packed.format, packed.options
        self.out_features, self.in_features = packed.shape
        for name, tensor in packed.tensors.items():
            self.register_buffer(name, tensor, persistent=False)         # state dicts have plain weights
        self.names = tuple(packed.tensors)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Packed tensors follow the model to a device but are never cast, which would change their meaning."""
        kept = {name: getattr(self, name) for name in self.names}
        super()._apply(fn, recurse)
        for name, tensor in kept.items():
            if (moved := getattr(self, name)).dtype != tensor.dtype:
                setattr(self, name, tensor.to(moved.device))
        return self

    def unpacked(self) -> Tensor:
        """The weight (out, in) float32, new at every call."""
        return Packed(self.format, {name: getattr(self, name) for name in self.names}, self.options).unpacked()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        return F.linear(x, self.unpacked().to(x.dtype), self.bias)


def keep_packed(model: nn.Module, layers: Mapping[str, Packed], device: torch.device | str = "cpu") -> None:
    """In place: replace the model's linear layers of these names by packed ones, with the same biases."""
    for name, packed in layers.items():
        parent, _, leaf = name.rpartition(".")
        bias = getattr(model.get_submodule(name), "bias", None)
        moved = Packed(packed.format, {own: tensor.to(device) for own, tensor in packed.tensors.items()},
                       packed.options)
        setattr(model.get_submodule(parent), leaf, PackedLinear(moved, bias))
