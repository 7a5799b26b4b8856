"""Which attributes of a prompt the judge reads back from its image, prompt by prompt."""
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..scenes import ATTRIBUTES, Scene, labels
from .batches import BenchImages, measure_each
from .judges import ImageJudge


@dataclass(frozen=True)
class Answers:
    """For every prompt and every attribute: whether the caption states it, and whether it was read
    correctly. Both bool (n, attributes)."""

    asked: Tensor
    right: Tensor

    @classmethod
    def of(cls, scenes: Sequence[Scene], choices: Tensor) -> "Answers":
        """From what was read, as `most_likely` gives it for the images of these scenes, on the CPU."""
        wanted = torch.tensor([labels(scene) for scene in scenes])
        asked = wanted >= 0
        return cls(asked, asked & (choices == wanted))

    @classmethod
    def read(cls, judge: ImageJudge, scenes: Sequence[Scene], images: BenchImages, batch: int,
             device: torch.device) -> "Answers":
        """The judge's most likely answers against what the captions state."""
        return cls.of(scenes, measure_each(images, batch, device, partial(most_likely, judge)))

    @classmethod
    def parse(cls, rows: Sequence[str]) -> "Answers":
        """From `text`."""
        asked = torch.tensor([[letter != "-" for letter in row] for row in rows])
        return cls(asked, torch.tensor([[letter == "1" for letter in row] for row in rows]))

    def text(self) -> list[str]:
        """One letter per attribute in the order of `ATTRIBUTES`: 1 correct, 0 wrong, - not stated."""
        return ["".join("-01"[int(a) + int(r)] for a, r in zip(asked, right))
                for asked, right in zip(self.asked.tolist(), self.right.tolist())]

    def counts(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Number of correct and of stated attributes of each prompt, each (n,) float64.

        By attribute; "all" over all attributes; "images", 1 if everything is correct. In crowded scenes the
        attributes of the nine places are pooled by kind.
        """
        found = {"all": (self.right.sum(1), self.asked.sum(1)),
                 "images": ((self.right == self.asked).all(1), torch.ones(len(self.asked)))}
        for title, members in columns().items():
            right, asked = self.right[:, members].sum(1), self.asked[:, members].sum(1)
            if asked.any():
                found[title] = (right, asked)
        return {name: (right.double(), asked.double()) for name, (right, asked) in found.items()}

    def shares(self) -> dict[str, float]:
        """Shares of correct answers, by the names of `counts`."""
        return {name: (right.sum() / asked.sum()).item() for name, (right, asked) in self.counts().items()}


def most_likely(judge: ImageJudge, images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in 0..1 -> the number of the most likely answer to every attribute, (B, attributes)."""
    with torch.inference_mode():
        return torch.stack([logits.argmax(1) for logits in judge(images)], 1)


def columns() -> dict[str, list[int]]:
    """Columns of a table and the attributes that each pools: those of the nine places as one "shape by place" etc."""
    pooled: dict[str, list[int]] = {}
    for number, name in enumerate(ATTRIBUTES):
        place, _, what = name.rpartition(" ")
        pooled.setdefault(f"{what} by place" if " " in place else name, []).append(number)
    return pooled
