"""Batches of images rendered afresh from catalogues of scenes, on whatever device these lie."""
import random
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..train.draws import draw_rows
from .catalogue import Catalogue
from .images import BUCKETS
from .render import arrange, paint


@dataclass(frozen=True)
class Worded:
    """Captions of one kind: tokens (B, L) int64 and mask (B, L) bool, and the size (height, width) of their images.

    `kind` and `rows` (B,): the catalogue and where in it the scenes stand.
    """

    kind: Catalogue
    rows: Tensor
    tokens: Tensor
    mask: Tensor
    size: tuple[int, int]


@dataclass(frozen=True)
class RenderedBatch:
    """A batch of one size: images (B, 3, H, W) in 0..1, tokens (B, L) int64 and mask (B, L) bool of their captions,
    answers (B, attributes) int64, -100 where the caption states nothing.

    `kind` and `rows` (B,): the catalogue and where in it the scenes stand.
    """

    kind: Catalogue
    rows: Tensor
    images: Tensor
    tokens: Tensor
    mask: Tensor
    answers: Tensor


class Scenery:
    """Renders scenes of catalogues: half of the batches square, the others shared out over the other buckets."""

    def __init__(self, ordinary: Catalogue, crowded: Catalogue | None = None, share: float = 0.2) -> None:
        """share: of the batches that are drawn from `crowded`."""
        self.ordinary, self.crowded, self.share = ordinary, crowded, share
        self.things = {id(kind): kind.things for kind in (ordinary, crowded) if kind is not None}

    def render(self, generator: torch.Generator, count: int) -> RenderedBatch:
        """`count` images of one size and kind."""
        kind, size = self._chosen(generator)
        return self._rendered(kind, size, generator, count)

    def captions(self, generator: torch.Generator, count: int) -> Worded:
        """Captions of the same scenes, and the size of their images, which are not rendered."""
        kind, size = self._chosen(generator)
        rows = draw_rows(partial(torch.randint, len(kind)), (count,), generator).to(kind.codes.device)
        tokens = kind.tokens[rows].long()
        return Worded(kind, rows, tokens, tokens > 0, size)

    def _chosen(self, generator: torch.Generator) -> tuple[Catalogue, tuple[int, int]]:
        """Catalogue and image size of a batch."""
        lot, size = _lot(generator)
        if self.crowded is not None and lot.random() < self.share:
            return self.crowded, size
        return self.ordinary, size

    def render_mixed(self, generator: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
        """Images and answers of `count` scenes, half of them crowded: for networks that normalise over a batch."""
        _, size = _lot(generator)
        kinds = [kind for kind in (self.ordinary, self.crowded) if kind is not None]
        parts = [self._rendered(kind, size, generator, count // len(kinds)) for kind in kinds]
        return torch.cat([part.images for part in parts]), torch.cat([part.answers for part in parts])

    def _rendered(self, kind: Catalogue, size: tuple[int, int], generator: torch.Generator,
                  count: int) -> RenderedBatch:
        device, (height, width) = kind.codes.device, size
        rows = draw_rows(partial(torch.randint, len(kind)), (count,), generator).to(device)
        tokens, answers = kind.tokens[rows].long(), kind.answers[rows].long()
        images = paint(arrange(kind.codes[rows], height, width, generator), height, width, self.things[id(kind)])
        return RenderedBatch(kind, rows, images, tokens, tokens > 0, answers.masked_fill(answers < 0, -100))


def _lot(generator: torch.Generator) -> tuple[random.Random, tuple[int, int]]:
    """What is drawn by lot on the CPU, as it must be known before anything is rendered; first the size of the batch."""
    lot = random.Random(generator.initial_seed())
    return lot, BUCKETS[0] if lot.random() < 0.5 else lot.choice(BUCKETS[1:])
