"""Captions alone as training data, encoded when the training starts and kept with their words: rewards read these."""
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..files.prompts import read_lines
from ..resolution import latent_sides
from ..text.encoded import Encoded, join_encoded
from .data import Batch, without_caption
from .draws import draw_rows, on_cpu


@dataclass(frozen=True)
class Captioned(Batch):
    """A batch that knows its captions' words. Its latents are zeros: they only say the size of an image."""

    texts: tuple[str, ...] = ()

    def to(self, device: torch.device) -> "Captioned":
        plain = Batch(self.latents, self.context, self.mask, self.size, self.aspect).to(device)
        return Captioned(plain.latents, plain.context, plain.mask, plain.size, plain.aspect, texts=self.texts)


class CaptionList:
    """Random batches of captions, each picked by (seed, step) alone, for images of one size."""

    edges, captions_only = "none", True

    def __init__(self, folder: Path, captions: Sequence[Encoded], null: Encoded, channels: int, height: int,
                 width: int) -> None:
        """folder: the file they come from, for messages. captions: one prompt each. height and width: in pixels."""
        self.folder, self.captions = folder, list(captions)
        self.shape = (channels, *latent_sides(height, width))
        self.height, self.width = height, width
        self.null_context, self.null_mask = null.context[0], null.mask[0]
        self.caption_width = self.null_context.shape[1]
        self.caption_tokens = max(part.context.shape[1] for part in [null, *self.captions])
        self.latent_space = None

    @property
    def texts(self) -> list[str]:
        return [part.reports[0].prompt for part in self.captions]

    def __len__(self) -> int:
        return len(self.captions)

    def batch(self, generator: torch.Generator, size: int) -> Captioned:
        rows = draw_rows(partial(torch.randint, len(self)), (size,), on_cpu(generator)).tolist()
        joined = join_encoded([self.captions[row] for row in rows])
        sides = torch.tensor([[float(self.height), float(self.width)]]).expand(size, 2)
        return Captioned(torch.zeros(size, *self.shape), joined.context, joined.mask, sides,
                         sides[:, 0] / sides[:, 1], texts=tuple(report.prompt for report in joined.reports))

    def without_caption(self, batch: Batch, rows: Tensor | None = None) -> Batch:
        length = max(batch.context.shape[1], len(self.null_mask))
        padded = replace(batch, context=_longer(batch.context, length), mask=_longer(batch.mask, length))
        return without_caption(padded, self.null_context.to(batch.context), self.null_mask.to(batch.mask.device), rows)


def _longer(tensor: Tensor, length: int) -> Tensor:
    """(B, L, ...) padded with zeros to (B, length, ...)."""
    more = tensor.new_zeros(len(tensor), length - tensor.shape[1], *tensor.shape[2:])
    return torch.cat([tensor, more], 1)


def read_captions(path: Path) -> list[str]:
    """One caption a line, blanks in a row taken as one. Raises FileNotFoundError, ValueError for a file without any."""
    return [" ".join(line.split()) for line in read_lines(path, "captions")]
