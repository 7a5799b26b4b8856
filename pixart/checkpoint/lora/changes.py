"""What one adapter of a LoRA file adds to a weight, in every form that ComfyUI and LyCORIS know.

A change belongs to some rows of one weight or bias of the reference layout. `change(rows)` is what full strength adds
to these rows (rows, ...), in their dtype; other strengths scale it. Formulas: LoRA arXiv 2106.09685, DoRA 2402.09353,
LoHa (FedPara) 2108.06098, LoKr and the Tucker forms 2309.14859, GLoRA 2306.07967, OFT 2306.07280, BOFT 2311.06243; in
their details as LyCORIS (KohakuBlueleaf/LyCORIS) computes them.
"""
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor

TABLE = "scale_shift_table"
Each = TypeVar("Each", bound="Change")


class Change:
    """The change of one row slice: slice `part` of `parts` equal ones of a weight or bias. A frozen dataclass."""

    method: ClassVar[str] = ""
    module: str                          # in the reference layout, such as "blocks.3.attn.qkv"
    part: int
    parts: int
    bias: bool                           # of the module's bias instead of its weight
    keys: tuple[str, ...]                # the tensors in the file that it was read from

    @property
    def target(self) -> str:
        """The parameter of a PixArtTransformer that it changes."""
        return f"{self.module}.{'bias' if self.bias else 'weight'}"

    def rows(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """First row and number of rows, in a parameter of this shape."""
        return self.part * (shape[0] // self.parts), shape[0] // self.parts

    def change(self, rows: Tensor) -> Tensor:
        """What full strength adds to the slice (rows, ...) of the parameter, in its dtype, float32 or better."""
        raise NotImplementedError

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by field name."""
        values = {field.name: getattr(self, field.name) for field in fields(cast(Any, self))}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def on(self: Each, device: torch.device | str, copy: bool = False) -> Each:
        """The same change with its tensors on a device; copy: copied even if they are there."""
        moved = {name: tensor.to(device, copy=copy) for name, tensor in self.tensors.items()}
        return cast(Each, replace(cast(Any, self), **moved))

    def refusal(self, shape: tuple[int, ...]) -> str:
        """Why it cannot change a parameter of this shape; "" if it can."""
        if not shape or shape[0] % self.parts:
            return f"{shape} cannot be cut in {self.parts} slices"
        try:
            rows = torch.empty(self.rows(shape)[1], *shape[1:], device="meta")
            added = self.on("meta").change(rows).shape
        except (RuntimeError, ValueError, IndexError) as error:
            return (str(error).splitlines() or ["shapes that do not fit"])[0][:120]
        return "" if added == rows.shape else f"it has shape {tuple(added)}"


class Scaled(Change):
    """A change scale * delta; with a magnitude, the direction of weight + delta with norms of its own (DoRA).

    magnitude: (rows,), norms of the changed rows, or (1, columns, ...), of the columns.
    """

    scale: float
    magnitude: Tensor | None

    def product(self, rows: Tensor) -> Tensor:
        """The change before scaling, with as many elements as the rows."""
        raise NotImplementedError

    def change(self, rows: Tensor) -> Tensor:
        delta = (self.scale * self.product(rows)).reshape(rows.shape)
        return delta if self.magnitude is None else decomposed(rows + delta, self.magnitude) - rows


def decomposed(weight: Tensor, magnitude: Tensor) -> Tensor:
    """The weight (rows, columns, ...) with its rows, or columns, scaled to the norms `magnitude` (DoRA, eq. 5).

    Their number decides which; for a square weight, (n,) is for rows and (1, n) for columns, as in LyCORIS.
    """
    tiny, count = torch.finfo(weight.dtype).tiny, magnitude.numel()
    by_rows = count == weight.shape[0] and (magnitude.ndim == 1 or count != weight.shape[1])
    turned = weight if by_rows else weight.transpose(0, 1)
    factor = magnitude.to(weight).flatten() / turned.flatten(1).norm(dim=1).clamp(min=tiny)
    return weight * factor.view(*((-1, 1) if by_rows else (1, -1)), *[1] * (weight.ndim - 2))


def multiplied(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """a (n, r) @ b (r, ...), in the dtype of `like`."""
    return a.flatten(1).to(like) @ b.flatten(1).to(like)


def tucker(core: Tensor, a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """core (r, s, h, w), a (r, out), b (s, in) -> (out, in, h, w): a kernel in Tucker form."""
    return torch.einsum("r s h w, r o, s i -> o i h w", core.to(like), a.to(like), b.to(like))


@dataclass(frozen=True, kw_only=True)
class _Placed(Change):
    """The fields of every change."""

    module: str
    part: int = 0
    parts: int = 1
    bias: bool = False
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Product(_Placed, Scaled):
    """The fields of every change that has a scale."""

    scale: float = 1.0
    magnitude: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class LoHa(_Product):
    """(w1_a @ w1_b) * (w2_a @ w2_b); with cores t1 and t2 both factors are kernels in Tucker form."""

    method: ClassVar[str] = "LoHa"
    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    t1: Tensor | None = None
    t2: Tensor | None = None

    def product(self, rows: Tensor) -> Tensor:
        if self.t1 is not None and self.t2 is not None:
            return tucker(self.t1, self.w1_a, self.w1_b, rows) * tucker(self.t2, self.w2_a, self.w2_b, rows)
        return multiplied(self.w1_a, self.w1_b, rows) * multiplied(self.w2_a, self.w2_b, rows)


@dataclass(frozen=True, kw_only=True)
class LoKr(_Product):
    """The Kronecker product of w1 and w2, each whole or as a product of two factors, w2 also in Tucker form."""

    method: ClassVar[str] = "LoKr"
    w1: Tensor | None = None
    w1_a: Tensor | None = None
    w1_b: Tensor | None = None
    w2: Tensor | None = None
    w2_a: Tensor | None = None
    w2_b: Tensor | None = None
    t2: Tensor | None = None

    def product(self, rows: Tensor) -> Tensor:
        first = whole_of(self.w1, self.w1_a, self.w1_b, rows)
        if self.t2 is not None and self.w2_a is not None and self.w2_b is not None:
            second = tucker(self.t2, self.w2_a, self.w2_b, rows)
        else:
            second = whole_of(self.w2, self.w2_a, self.w2_b, rows)
        if first.ndim != 2 or second.ndim not in (2, 4):
            raise ValueError(f"factors of shapes {tuple(first.shape)} and {tuple(second.shape)}")
        return torch.kron(first.view(*first.shape, *[1] * (second.ndim - 2)), second)


def whole_of(whole: Tensor | None, a: Tensor | None, b: Tensor | None, like: Tensor) -> Tensor:
    """A factor as it is, or the product of its two parts."""
    if whole is not None:
        return whole.to(like)
    if a is None or b is None:
        raise ValueError("half of a factor is missing")
    return multiplied(a, b, like)


@dataclass(frozen=True, kw_only=True)
class GLoRA(_Product):
    """W a1 a2 + b1 b2, or in older files W a2 a1 + b2 b1."""

    method: ClassVar[str] = "GLoRA"
    a1: Tensor
    a2: Tensor
    b1: Tensor
    b2: Tensor

    def product(self, rows: Tensor) -> Tensor:
        flat = rows.flatten(2) if rows.ndim > 2 else rows[..., None]
        turn, add = (self.a1, self.b1), (self.a2, self.b2)
        if self.is_old(rows.shape[0]):
            turn, add = (self.a2, self.b2), (self.a1, self.b1)
        turned = torch.einsum("o i k, i r, r j -> o j k", flat, turn[0].flatten(1).to(rows), add[0].flatten(1).to(rows))
        return turned.reshape(rows.shape) + multiplied(turn[1], add[1], rows).reshape(rows.shape)

    def is_old(self, rows: int) -> bool:
        """The older order, by the place of the rank in the shapes; if both fit, by the number of rows."""
        old = self.b2.shape[1] == self.b1.shape[0] == self.a1.shape[0] == self.a2.shape[1]
        new = self.b2.shape[0] == self.b1.shape[1] == self.a1.shape[1] == self.a2.shape[0]
        return old and (not new or self.a2.shape[0] == rows)

    @staticmethod
    def rank_of(a1: Tensor, a2: Tensor) -> int:
        return min(a1.shape[0], a1.shape[1], a2.shape[0], a2.shape[1])


@dataclass(frozen=True, kw_only=True)
class OFT(_Placed):
    """Blocks of n rows rotated by R = (I + Q) (I - Q)^-1, Q antisymmetric; blocks (count, n, n).

    constraint: the largest norm of Q, 0 without one. rescale: factors of the turned rows.
    """

    method: ClassVar[str] = "OFT"
    blocks: Tensor
    constraint: float = 0.0
    rescale: Tensor | None = None

    def change(self, rows: Tensor) -> Tensor:
        turns = rotations(self.blocks.to(rows), self.constraint)
        cut = rows.view(*turns.shape[:2], *rows.shape[1:])
        turned = torch.einsum("k n m, k n ... -> k m ...", turns, cut).reshape(rows.shape)
        return rescaled(turned, self.rescale) - rows


@dataclass(frozen=True, kw_only=True)
class BOFT(OFT):
    """OFT in several steps, each over rows permuted in butterfly order; blocks (steps, count, n, n)."""

    method: ClassVar[str] = "BOFT"

    def change(self, rows: Tensor) -> Tensor:
        turns = rotations(self.blocks.to(rows), self.constraint)
        steps, _, size, _ = turns.shape
        turned = rows
        for step in range(steps):
            stride = 2 ** step * (size // 2)
            shuffled = turned.unflatten(0, (-1, 2, stride)).transpose(1, 2).flatten(0, 2).unflatten(0, (-1, size))
            mixed = torch.einsum("b i j, b j ... -> b i ...", turns[step], shuffled).flatten(0, 1)
            turned = mixed.unflatten(0, (-1, stride, 2)).transpose(1, 2).flatten(0, 2)
        return rescaled(turned, self.rescale) - rows


def rotations(blocks: Tensor, constraint: float) -> Tensor:
    """(..., n, n) any numbers -> (..., n, n) rotations by the Cayley transform; constraint > 0 bounds the norm of Q."""
    turn = blocks - blocks.transpose(-1, -2)
    if constraint > 0:
        turn = turn * (constraint / (turn.norm() + 1e-8)).clamp(max=1)
    one = torch.eye(turn.shape[-1], dtype=turn.dtype, device=turn.device)
    return (one + turn) @ torch.linalg.inv(one - turn)


def rescaled(rows: Tensor, factors: Tensor | None) -> Tensor:
    """Rows times their factors, which may come in any shape of one number each."""
    return rows if factors is None else rows * factors.to(rows).reshape(-1, *[1] * (rows.ndim - 1))


@dataclass(frozen=True, kw_only=True)
class Difference(_Placed):
    """The whole difference of a weight or bias."""

    method: ClassVar[str] = "full difference"
    difference: Tensor

    def change(self, rows: Tensor) -> Tensor:
        return self.difference.to(rows)


@dataclass(frozen=True, kw_only=True)
class Replacement(_Placed):
    """Another weight in place of the one there."""

    method: ClassVar[str] = "replacement"
    value: Tensor

    def change(self, rows: Tensor) -> Tensor:
        return self.value.to(rows) - rows

