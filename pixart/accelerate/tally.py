"""Counts what is really computed, as the last of all policies: it is asked only where nothing was reused."""
from collections import Counter

from torch import Tensor

from ..model.policy import Pass, Policy, Run
from .cost import Costs
from .schedule import BRANCHES


class Tally(Policy):
    """Rows of passes and of whole blocks that were computed in a sampling; blocks still run in one piece."""

    def __init__(self) -> None:
        self.passes: Counter[int] = Counter()       # rows by step
        self.blocks: Counter[int] = Counter()       # rows by block

    def stack(self, p: Pass, go: Run) -> Tensor:
        self.passes[p.known_step().index] += len(p.x)
        return go(p)

    def block(self, index: int, p: Pass, go: Run) -> Tensor:
        self.blocks[index] += len(p.x)
        return go(p)

    @property
    def rows(self) -> int:
        """Rows of all passes."""
        return self.passes.total()

    def of_branch(self, block: int, name: str) -> int:
        """Rows that a branch was computed for."""
        return self.blocks[block]

    def branches(self, depth: int) -> int:
        """Rows of all branches."""
        return sum(self.of_branch(block, name) for block in range(depth) for name in BRANCHES)

    def macs(self, costs: Costs) -> int:
        """Work of all that was computed, in multiply-accumulate operations."""
        blocks = sum(self.of_branch(block, name) * price for block in range(costs.config.depth)
                     for name, price in zip(BRANCHES, costs.branches(block)))
        return self.rows * costs.overhead + blocks


class TallyBranches(Tally):
    """For policies that reuse branches: these are counted one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.computed: Counter[tuple[int, str]] = Counter()

    def branch(self, index: int, name: str, p: Pass, go: Run) -> Tensor:
        self.computed[index, name] += len(p.x)
        return go(p)

    def of_branch(self, block: int, name: str) -> int:
        return self.computed[block, name]
