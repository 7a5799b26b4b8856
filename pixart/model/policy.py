"""The single interface for everything that skips, replaces or reorders work inside the stack of blocks.

Step caches, token pooling, feedback and a host's block patches are policies. A policy is asked at three places of a
pass: for the whole stack, for every block, and for every branch of a block (before its gate). At each it is given what
it would compute from and a function that computes, and answers with a tensor of its own or with that function's.

Shapes: B rows (images times prompts), N image tokens, L text tokens, D width.
"""
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from .attention import Options

if TYPE_CHECKING:
    from .transformer import PixArtTransformer


class Lane(NamedTuple):
    """Identifies a row of the batch: one prompt of one image."""

    image: Hashable       # the same in all rows of one image
    prompt: Hashable
    negative: bool          # whether it is a prompt to avoid


@dataclass(frozen=True)
class Step:
    """Where in a sampling a pass belongs, and what its rows are.

    index 0 .. total - 1 counts the steps of the schedule; solvers that evaluate a model twice in a step repeat it.
    timestep 0 .. 999, as a number on the CPU. lanes: a name for each row, the same in every step, no two alike, best
    a Lane; rows may come in one pass or in several, in any order. run: any object, a new one for every
    sampling, so that nothing is carried from one to the next. Raises ValueError when two lanes are equal.
    """

    index: int
    total: int
    timestep: float
    lanes: tuple[Hashable, ...]
    run: object

    def __post_init__(self) -> None:
        if len(set(self.lanes)) < len(self.lanes):
            raise ValueError(f"two of the {len(self.lanes)} lanes are equal: {self.lanes}; every row needs its own")

    def part(self, rows: Sequence[int]) -> "Step":
        """The step of some of the rows."""
        return replace(self, lanes=tuple(self.lanes[row] for row in rows))


@dataclass(frozen=True)
class Pass:
    """What the blocks read. Never modified: `with_x` and `dataclasses.replace` give changed copies."""

    network: "PixArtTransformer"                # whose pass it is: one of several where devices share a sampling
    x: Tensor                                   # (B, N, D)
    text: Tensor                                # (B, L, D)
    mask: Tensor | None                         # (B, 1, 1, L), see `score_bias`; or (B, L) bool
    modulation: Tensor                          # (B, 6, D)
    grid: tuple[int, int]                       # (h, w) in tokens, N = h * w
    control: Sequence[Tensor | None] | None     # entry i, (B, N, D) or None, is added to the input of block i
    options: Options                            # for the attention function
    step: Step | None                           # None outside of a sampling
    timestep: Tensor | None = None              # (B,), for networks that compute less at some of them

    def with_x(self, x: Tensor) -> "Pass":
        """The same pass with another residual stream."""
        # Spelled out: this runs once a block, and `replace` takes three times as long.
        return Pass(self.network, x, self.text, self.mask, self.modulation, self.grid, self.control, self.options,
                    self.step, self.timestep)

    def controlled(self, index: int) -> "Pass":
        """The same pass with the control of block `index` added to x and taken out of `control`.

        A block does this by itself; a policy that leaves block `index` out returns `p.controlled(index).x`.
        """
        if self.control is None or index >= len(self.control) or (residual := self.control[index]) is None:
            return self
        left = [None if i == index else entry for i, entry in enumerate(self.control)]
        return replace(self, x=self.x + residual.to(self.x.dtype), control=left)

    def part(self, rows: Sequence[int]) -> "Pass":
        """The pass of some of the rows, in this order."""
        chosen = list(rows)
        control = self.control and [entry if entry is None or len(entry) == 1 else entry[chosen]
                                    for entry in self.control]
        return replace(self, x=self.x[chosen], text=self.text[chosen], modulation=self.modulation[chosen],
                       mask=None if self.mask is None else self.mask[chosen], control=control,
                       step=self.step and self.step.part(chosen),
                       timestep=None if self.timestep is None else self.timestep[chosen])

    def known_step(self) -> Step:
        """The step, for policies that cannot do without; ValueError where the caller gave none."""
        if self.step is None:
            raise ValueError("a policy needs to know the sampling step; give `step` to the transformer's forward")
        return self.step


Run = Callable[[Pass], Tensor]      # a pass -> (B, N, D)


class Policy:
    """Computes everything: bit-identical to no policy at all. Override what should differ.

    The methods may be called from several threads, one for each device with a network of its own. So weights are those
    of `p.network`, what belongs to one pass stays in local variables, and what is kept from step to step in a
    LaneMemory. A policy may be an nn.Module with weights as well. `go` may be called any number of times, also with
    another pass: other tokens on another `grid` (then `control` must be put on that grid too), other text.
    """

    def stack(self, p: Pass, go: Run) -> Tensor:
        """x after all blocks; go(p) runs them."""
        return go(p)

    def block(self, index: int, p: Pass, go: Run) -> Tensor:
        """x after block `index`; go(p) adds this block's control to p.x and runs the block."""
        return go(p)

    def branch(self, index: int, name: str, p: Pass, go: Run) -> Tensor:
        """The output of branch `name` ("attn", "cross_attn", "mlp") of block `index` before its gate, for input p.x.

        The answer is (B, N, D) or a shape that broadcasts to it.
        """
        return go(p)

    def guides(self, index: int, total: int) -> bool:
        """Whether step `index` of `total` takes the negative prompt; else the sampler runs the positive one alone."""
        return True

    def kept(self, depth: int) -> int:
        """How many tensors (N, D) it keeps for each lane at the most, in a stack of `depth` blocks.

        A host leaves room for them before the first step.
        """
        return 0


def composed(policies: Sequence[Policy], place: str, where: tuple[Any, ...], compute: Run) -> Run:
    """`compute` as the policies see it: the first one is asked first, the last one just before computing."""
    for policy in reversed(policies):
        compute = partial(getattr(policy, place), *where, go=compute)
    return compute


def asked_for_branches(policies: Sequence[Policy]) -> bool:
    """Whether any of them intercepts branches; if not, blocks run in one piece."""
    return any(getattr(type(policy), "branch", None) is not Policy.branch for policy in policies)
