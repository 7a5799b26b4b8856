"""What a span of blocks adds to the residual stream, row by row, without the control that enters it."""
from collections.abc import Hashable

from torch import Tensor

from ..model.lane_memory import LaneMemory
from ..model.policy import Pass


class SpanInput:
    """Keeps the input of a span of blocks, to find at its end what the blocks added."""

    def __init__(self, memory: LaneMemory, key: Hashable) -> None:
        self.memory, self.key = memory, (key, "input")

    def enter(self, index: int, span: range, p: Pass) -> None:
        """Called before block `index` of the span. Control of blocks within counts as input: it is added live."""
        step, controlled = p.known_step(), p.controlled(index)
        if index == span.start:
            self.memory.put(step, self.key, controlled.x)
        elif controlled is not p:
            entered = self.memory.get(step, self.key)
            assert entered is not None
            self.memory.put(step, self.key, entered + (controlled.x - p.x))

    def added(self, p: Pass, out: Tensor) -> Tensor:
        """What the blocks added, (B, N, D); out: x after the last of them. Forgets the input."""
        step = p.known_step()
        entered = self.memory.get(step, self.key)
        assert entered is not None
        self.memory.drop(step, self.key)
        return out - entered
