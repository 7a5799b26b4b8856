"""Counts what is really computed, as the last of all policies: it is asked only where nothing was reused."""
from collections import Counter

from torch import Tensor

from ..model.policy import Pass, Policy, Run


class Tally(Policy):
    """Rows of blocks and of branches that were computed, and rows of passes, in a sampling.

    Blocks counts whole blocks, so that they run in one piece where no policy looks into them; with TallyBranches
    every branch is counted too.
    """

    def __init__(self) -> None:
        self.passes: Counter[int] = Counter()       # rows by step
        self.blocks = self.branches = 0

    def stack(self, p: Pass, go: Run) -> Tensor:
        self.passes[p.known_step().index] += len(p.x)
        return go(p)

    def block(self, index: int, p: Pass, go: Run) -> Tensor:
        self.blocks += len(p.x)
        return go(p)

    @property
    def rows(self) -> int:
        """Rows of all passes."""
        return self.passes.total()


class TallyBranches(Tally):
    """Also counts branches, for policies that reuse these."""

    def branch(self, index: int, name: str, p: Pass, go: Run) -> Tensor:
        self.branches += len(p.x)
        return go(p)
