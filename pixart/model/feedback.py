"""Inner loop feedback: a learned block that feeds the output of the middle blocks back to them, within one pass.

Blocks `first` to `last` run; a separate block, trained from scratch, reads the output of `last`; its own output, times
a learned scale for each of these blocks, is added to their inputs, and they run once more from the same start. The rest
of the network runs once. The prediction then serves a longer step. Source: ILF (arXiv 2501.13107); its weights and
settings were never published, so which blocks and which target are choices of this package.

Shapes: B rows, N image tokens, D width, K blocks that run twice.
"""
import copy
import threading

import torch
from torch import Tensor, nn

from ..config import PixArtConfig
from .attention import Attend, sdpa
from .block import PixArtBlock
from .layers import Ops
from .policy import Pass, Policy, Run
from .transformer import PixArtTransformer


class Feedback(nn.Module):
    """The feedback block, and scales (K, D) that start at zero, so that it changes nothing before it has learned.

    steps: the number of sampling steps it was trained for.
    """

    def __init__(self, config: PixArtConfig, first: int, last: int, steps: int = 10, ops: Ops = nn,
                 attend: Attend = sdpa, dtype: torch.dtype | None = None,
                 device: torch.device | str | None = None) -> None:
        super().__init__()
        if not 0 <= first <= last < config.depth:
            raise ValueError(f"blocks {first} to {last} are to run twice; this model has blocks 0 to "
                             f"{config.depth - 1}, and the first must not come after the last")
        self.config, self.first, self.last, self.steps = config, first, last, steps
        self.block = PixArtBlock(config, last, ops, attend, dtype=dtype, device=device)
        self.scales = nn.Parameter(torch.zeros(last - first + 1, config.hidden, dtype=dtype, device=device))

    @property
    def blocks(self) -> range:
        """Those that run twice."""
        return range(self.first, self.last + 1)

    def forward(self, x: Tensor, p: Pass) -> Tensor:
        """Output x (B, N, D) of block `last` in the pass p -> the feedback (B, N, D), before the scales."""
        return self.block(x, p.text, p.modulation, p.grid, p.mask, p.options)

    def check(self, config: PixArtConfig) -> None:
        """Refuse a model that it was not trained for."""
        ours, theirs = self.config, config
        if (ours.depth, ours.hidden, ours.heads) != (theirs.depth, theirs.hidden, theirs.heads):
            raise ValueError(f"this feedback is for {ours.depth} blocks of width {ours.hidden}, the model has "
                             f"{theirs.depth} of {theirs.hidden}; use the one that was trained with this model")


class InnerLoop(Policy):
    """Feedback in every `every`-th step between the fractions `start` (included) and `end` (excluded) of the schedule.

    Outside of a sampling (training) it is in every pass. The control of a block is added both times it runs.
    """

    def __init__(self, feedback: Feedback, start: float = 0.0, end: float = 1.0, every: int = 1) -> None:
        if not 0 <= start <= end <= 1 or every < 1:
            raise ValueError(f"feedback from {start} to {end}, every {every} steps; expected 0 <= start <= end <= 1 "
                             "and at least 1")
        self.feedback, self.start, self.end, self.every = feedback, start, end, every
        self.seen = threading.local()           # (pass, what runs it) of the blocks so far: one pass a thread at a time

    def used(self, p: Pass) -> bool:
        """Whether this pass has feedback."""
        if p.step is None:
            return True
        first, last = (round(share * p.step.total) for share in (self.start, self.end))
        return first <= p.step.index < last and (p.step.index - first) % self.every == 0

    def network(self, x: Tensor) -> Feedback:
        """The feedback that computes on x."""
        return self.feedback

    def stack(self, p: Pass, go: Run) -> Tensor:
        self.seen.runs = []
        return go(p)

    def block(self, index: int, p: Pass, go: Run) -> Tensor:
        x = go(p)
        if index not in self.feedback.blocks or not self.used(p):
            return x
        self.seen.runs.append((p, go))
        if index < self.feedback.last:
            return x
        runs, self.seen.runs = self.seen.runs, []
        # A policy asked before this one may have left some of the blocks out: then there is no loop to close.
        return self.again(runs, x, p) if len(runs) == len(self.feedback.blocks) else x

    def again(self, runs: list[tuple[Pass, Run]], x: Tensor, p: Pass) -> Tensor:
        """x (B, N, D), of the last of the blocks -> the same after they ran once more."""
        network = self.network(x)
        sent = network(x, p)                                                            # (B, N, D)
        x = runs[0][0].x
        for (before, go), scale in zip(runs, network.scales):
            x = go(before.with_x(x + scale.to(sent.dtype) * sent))                      # (B, N, D)
        return x


class PlacedInnerLoop(InnerLoop):
    """The same, with the feedback copied to the device and data type that the model computes in; for inference."""

    def __init__(self, feedback: Feedback, start: float = 0.0, end: float = 1.0, every: int = 1) -> None:
        super().__init__(feedback, start, end, every)
        self.lock, self.placed = threading.Lock(), dict[tuple[torch.device, torch.dtype], Feedback]()

    def network(self, x: Tensor) -> Feedback:
        with self.lock:
            place = (x.device, x.dtype)
            if place not in self.placed:
                table = self.feedback.block.scale_shift_table
                made = copy.deepcopy(self.feedback).to(*place)
                made.block.scale_shift_table = copy.deepcopy(table).to(x.device)        # stays float32
                self.placed[place] = made
            return self.placed[place]


class WithFeedback(nn.Module):
    """A frozen base with its feedback as one network, for training. Its forward is the base's."""

    def __init__(self, base: PixArtTransformer, feedback: Feedback) -> None:
        super().__init__()
        feedback.check(base.config)
        self.base, self.feedback, self.config = base, feedback, base.config

    def forward(self, latent: Tensor, timestep: Tensor, context: Tensor, mask: Tensor | None = None,
                size: Tensor | None = None, aspect: Tensor | None = None, learned_variance: bool = False) -> Tensor:
        """As PixArtTransformer.forward, with feedback in every pass."""
        return self.base(latent, timestep, context, mask, size, aspect, policies=[InnerLoop(self.feedback)],
                         learned_variance=learned_variance)
