"""Policies of every kind, as small as they can be, for the tests of the seam."""
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixart.model.lane_memory import LaneMemory
from pixart.model.policy import Pass, Policy, Run


class ReuseBranches(Policy):
    """Computes the branches in every n-th step and repeats their answers in between (FORA)."""

    def __init__(self, every: int = 2) -> None:
        self.every, self.memory, self.computed = every, LaneMemory(), 0

    def branch(self, index: int, name: str, p: Pass, go: Run) -> Tensor:
        step = p.known_step()
        kept = self.memory.get(step, (index, name)) if step.index % self.every else None
        if kept is None:
            self.computed += 1
            kept = go(p)
            self.memory.put(step, (index, name), kept)
        return kept

    def kept(self, depth: int) -> int:
        return 3 * depth


class ReuseBlock(Policy):
    """Repeats what one block changed."""

    def __init__(self, index: int = 1) -> None:
        self.index, self.memory, self.computed = index, LaneMemory(), 0

    def block(self, index: int, p: Pass, go: Run) -> Tensor:
        if index != self.index:
            return go(p)
        step = p.known_step()
        kept = self.memory.get(step, index) if step.index % 3 else None
        if kept is not None:
            return p.controlled(index).x + kept
        self.computed += 1
        out = go(p)
        self.memory.put(step, index, out - p.controlled(index).x)
        return out


class ReuseStack(Policy):
    """Repeats what all blocks changed together."""

    def __init__(self) -> None:
        self.memory, self.computed = LaneMemory(), 0

    def stack(self, p: Pass, go: Run) -> Tensor:
        step = p.known_step()
        kept = self.memory.get(step, "stack") if step.index % 2 else None
        if kept is None:
            self.computed += 1
            kept = go(p) - p.x
            self.memory.put(step, "stack", kept)
        return p.x + kept


class Pooled(Policy):
    """Block 1 sees a quarter of the tokens; control is pooled with them."""

    def block(self, index: int, p: Pass, go: Run) -> Tensor:
        if index != 1:
            return go(p)
        p = p.controlled(index)
        small = replace(p, x=halve(p.x, p.grid), grid=(p.grid[0] // 2, p.grid[1] // 2))
        change = (go(small) - small.x).unflatten(1, small.grid).movedim(3, 1)
        return p.x + F.interpolate(change, scale_factor=2).flatten(2).movedim(1, 2)


def halve(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, h * w, D) -> (B, h * w / 4, D)"""
    return F.avg_pool2d(tokens.unflatten(1, grid).movedim(3, 1), 2).flatten(2).movedim(1, 2)


class Feedback(nn.Module, Policy):
    """A policy with weights: a linear map of the input of block 0 added to the output of the last block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(width, width)

    def stack(self, p: Pass, go: Run) -> Tensor:
        return go(p) + self.map(p.x)


class AskedEverywhere(Policy):
    """Computes everything and remembers where it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple] = []

    def stack(self, p: Pass, go: Run) -> Tensor:
        self.asked.append(("stack",))
        return go(p)

    def block(self, index: int, p: Pass, go: Run) -> Tensor:
        self.asked.append((index,))
        return go(p)

    def branch(self, index: int, name: str, p: Pass, go: Run) -> Tensor:
        self.asked.append((index, name))
        return go(p)


class Nothing(Policy):
    """Leaves every block out, control aside."""

    def block(self, index: int, p: Pass, go: Run) -> Tensor:
        return p.controlled(index).x


class Silent(Policy):
    """One branch says nothing."""

    def __init__(self, name: str) -> None:
        self.name = name

    def branch(self, index: int, name: str, p: Pass, go: Run) -> Tensor:
        return torch.zeros(()) if name == self.name else go(p)
