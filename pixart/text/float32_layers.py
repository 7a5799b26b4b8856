"""Layers that keep their weights in bfloat16 and compute in float32.

For processors without matrix units for bfloat16, which multiply it several times slower than float32 (see
docs/measurements.md). Memory: the weights in bfloat16, and one layer at a time in float32.
"""
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Float32Linear(nn.Linear):
    """(..., in) -> (..., out) float32, without bias."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = nn.Parameter(weight.to(torch.bfloat16), requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input.float(), self.weight.float())


class Float32Embedding(nn.Embedding):
    """Ids (...) -> (..., C) float32."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight.shape[0], weight.shape[1], device="meta")
        self.weight = nn.Parameter(weight.to(torch.bfloat16), requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).float()
