"""Muon: momentum made orthogonal, for the matrices of the blocks (Jordan et al. 2024; scaled as by Liu et al. 2025).

torch.optim.Muon computes the same, but every matrix by itself and always in bfloat16. Its dozens of small products per
matrix leave a GPU waiting for launches, and on a processor without matrix units bfloat16 is up to 60 times slower than
float32: two thirds of a step of PixArt-mini. So matrices of one shape go together here, in what the device is fast in.
"""
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from .precision import fitting_precision

COEFFICIENTS = (3.4445, -4.7750, 2.0315)     # of the quintic: the steepest at zero that stays below about 1.2
ITERATIONS = 5
SMALLEST_NORM = 1e-7
STACKED = 2 ** 24            # most numbers in one stack: large matrices keep a GPU busy by themselves
ADAM_RMS = 0.2               # typical root mean square of AdamW's updates


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, with decoupled weight decay.

    Updates have the root mean square of AdamW's (arXiv 2502.16982, equation 4), so one learning rate serves both
    optimizers of a training. State and groups carry the names of torch.optim.Muon.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1e-3, weight_decay: float = 0.1,
                 momentum: float = 0.95) -> None:
        """params: matrices, or groups of them. Raises ValueError for a tensor of another rank."""
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for matrix in (p for group in self.param_groups for p in group["params"]):
            if matrix.ndim != 2:
                raise ValueError(f"Muon moves matrices only, this tensor has shape {tuple(matrix.shape)}; give the "
                                 "others to AdamW")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every matrix that has a gradient; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            for matrices in stacks(trained):
                self.move(matrices, group)
        return loss

    def move(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        """One update of matrices of one shape."""
        updates = [self.momentum(matrix, group["momentum"]) for matrix in matrices]
        rate = group["lr"] * ADAM_RMS * math.sqrt(max(matrices[0].shape))
        native = fitting_precision(matrices[0].device, max(matrices[0].shape)) == "bf16"
        dtype = torch.bfloat16 if native else torch.float32
        for matrix, update in zip(matrices, orthogonal(updates, dtype), strict=True):
            matrix.mul_(1 - group["lr"] * group["weight_decay"])
            matrix.add_(update, alpha=-rate)

    def momentum(self, matrix: Tensor, decay: float) -> Tensor:
        """The gradient's moving average, looked ahead by one step (Nesterov)."""
        gradient, state = matrix.grad, self.state[matrix]
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        state["momentum_buffer"].lerp_(gradient, 1 - decay)
        return gradient.lerp(state["momentum_buffer"], decay)


def stacks(matrices: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Matrices of one shape and device, at most STACKED numbers together."""
    alike: dict[Any, list[Tensor]] = {}
    for matrix in matrices:
        alike.setdefault((matrix.shape, matrix.device), []).append(matrix)
    for group in alike.values():
        most = max(1, STACKED // group[0].numel())
        yield from (group[first:first + most] for first in range(0, len(group), most))


def orthogonal(matrices: list[Tensor], dtype: torch.dtype) -> Iterable[Tensor]:
    """U V^T of each matrix U S V^T of one shape (rows, columns), about, by Newton-Schulz iterations in `dtype`.

    Singular values end between 0.7 and 1.2, but for those below a fiftieth of the matrix's norm, which stay smaller.
    """
    rows, columns = matrices[0].shape
    x = torch.stack(matrices).to(dtype) if len(matrices) > 1 else matrices[0].to(dtype)[None]
    wide = x.mT if rows > columns else x                # so that the products below are of the shorter side
    x = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp(min=SMALLEST_NORM)      # singular values at most 1
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if rows > columns else x).unbind()
