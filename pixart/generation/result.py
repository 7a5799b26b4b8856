"""What a call of the pipeline returns: images, what became of their prompts, and how they were made."""
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..files.images import save_image, to_image
from ..text.tokens import PromptReport
from .facts import ImageFacts

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Images:
    """The result of a call: pixels (B, 3, height, width) in 0..1 on the CPU; a report and a seed per image.

    facts: how each was made, none if unknown.
    """

    pixels: Tensor
    reports: list[PromptReport]
    seeds: list[int]
    facts: Sequence[ImageFacts] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self) -> "list[Image]":
        """As Pillow images."""
        return [to_image(image) for image in self.pixels]

    def save(self, path: str | Path, first: int = 0, metadata: bool = True) -> list[Path]:
        """Write to `path`; further images get -1, -2, ... before the extension, counting from `first`.

        metadata: put the facts into the files, see `save_image`.
        """
        path = Path(path)
        known = metadata and len(self.facts) > 0
        told: Sequence[str | None] = [facts.parameters for facts in self.facts] if known else [None] * len(self)
        return [save_image(path.with_stem(f"{path.stem}-{number}") if number else path, image, parameters)
                for number, (image, parameters) in enumerate(zip(self.pixels, told, strict=True), first)]
