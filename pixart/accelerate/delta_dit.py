"""Delta-DiT: a group of blocks is skipped and its last change of the stream added again (arXiv 2406.01125).

No code was published; this follows the paper's text. Early steps reuse the rear blocks, late ones the front blocks.
"""
from collections.abc import Sequence

from torch import Tensor

from ..model.lane_memory import LaneMemory
from ..model.policy import Pass, Policy, Run
from .span import SpanInput

Spans = Sequence[range | None]      # for each step the blocks that are reused, None: all are computed


class DeltaCache(Policy):
    """Skips the blocks of a step's span and adds what they added last. Control stays live.

    Every computed step keeps what the coming steps reuse; a row for which nothing is kept is computed.
    """

    def __init__(self, spans: Spans) -> None:
        self.spans, self.memory = list(spans), LaneMemory()
        self._coming = [sorted(needed(self.spans, step), key=lambda span: span.start) for step in range(len(spans))]

    def stack(self, p: Pass, go: Run) -> Tensor:
        total = p.known_step().total
        if total != len(self.spans):
            raise ValueError(f"Delta-DiT was set for {len(self.spans)} steps, this sampling takes {total}")
        return go(p)

    def block(self, index: int, p: Pass, go: Run) -> Tensor:
        step = p.known_step()
        span = self.spans[step.index]
        if span is not None and index in span:
            kept = self.memory.get(step, span)
            if kept is not None:
                x = p.controlled(index).x
                return x + kept if index == span[-1] else x
        return self.record(index, p, go)

    def record(self, index: int, p: Pass, go: Run) -> Tensor:
        """Compute the block, and keep what the coming steps' spans add in this pass."""
        step = p.known_step()
        spans = [span for span in self._coming[step.index] if index in span]
        for span in spans:
            SpanInput(self.memory, span).enter(index, span, p)
        x = go(p)
        for span in spans:
            if index == span[-1]:
                self.memory.put(step, span, SpanInput(self.memory, span).added(p, x))
        return x

    def kept(self, depth: int) -> int:
        return max((2 * len(spans) for spans in self._coming), default=0)


def needed(spans: Spans, step: int) -> set[range]:
    """What has to be kept at a step: the spans of the steps after it, up to the next one that computes all."""
    found: set[range] = set()
    for span in spans[step + 1:]:
        if span is None:
            break
        found.add(span)
    return found


def delta_spans(steps: int, depth: int, every: int, blocks: int, boundary: int | None = None,
                front: int = 1) -> list[range | None]:
    """The published rule: every `every`-th step is computed whole; the others reuse `blocks` blocks.

    Before step `boundary` (by default 0.6 of the steps, as the paper's 12 of 20) these are the last ones, from there on
    those after the first `front`. ValueError where blocks do not fit.
    """
    if every < 1 or not 0 <= blocks <= depth - front:
        raise ValueError(f"{blocks} blocks in all but every {every}th step asked for; of {depth} blocks "
                         f"0 to {depth - front} can be reused")
    last_rear = round(0.6 * steps) if boundary is None else boundary
    rear, early = range(depth - blocks, depth), range(front, front + blocks)
    return [None if step % every == 0 or blocks == 0 else rear if step < last_rear else early for step in range(steps)]
