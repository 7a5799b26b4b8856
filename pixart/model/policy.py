"""The one seam for everything that skips, replaces or reorders work inside the stack of blocks.

Step caches, feedback, token pooling and a host's block patches are policies. The transformer calls a policy for
spans of blocks and for the three branches of each block, before gating.
"""
from collections.abc import Callable

from torch import Tensor

RunBlock = Callable[[int, Tensor], Tensor]       # (block index, x (B, N, D)) -> x after this block
Compute = Callable[[], Tensor]                   # -> branch output (B, N, D); valid only until `branch` returns


class Policy:
    """Computes everything: bit-identical to no policy at all. Override what should differ."""

    def span(self, x: Tensor, run: RunBlock, depth: int) -> Tensor:
        """Take x (B, N, D) through blocks 0 .. depth - 1."""
        for index in range(depth):
            x = run(index, x)
        return x

    def branch(self, block: int, name: str, compute: Compute) -> Tensor:
        """The output (B, N, D) of branch "attn", "cross_attn" or "mlp" of one block."""
        return compute()
