"""The held-out prompts that every method is evaluated on, and the batches in which their images are generated."""
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from ..images import BUCKETS, render_scene
from ..prepare import held_out, image_lot
from ..scenes import Scene
from .batches import BenchImages

_RUN, _BUCKET = 1_000_000, 100_000        # distances between the seeds of two runs, and of two buckets of a run


@dataclass(frozen=True)
class PromptGroup:
    """Prompts of one batch: images of one size, with seeds that follow `seed`."""

    height: int
    width: int
    members: range           # numbers of the prompts
    seed: int


@dataclass(frozen=True)
class Prompts:
    """Held-out prompts; prompt i has the image size BUCKETS[i % len(BUCKETS)].

    run: which noise their images start from. The same prompt in another run is another image.
    """

    scenes: list[Scene]
    captions: list[str]
    seed: int
    crowded: bool = False    # three to five objects, and captions of more than 120 tokens
    run: int = 0

    @classmethod
    def held_out(cls, count: int, seed: int, crowded: bool = False) -> "Prompts":
        """The first `count` prompts of the endless sequence that `seed` and `crowded` select."""
        if not 1 <= count <= _BUCKET:
            raise ValueError(f"{count} prompts asked for; between 1 and {_BUCKET} are possible")
        examples = held_out(count, seed, crowded)
        return cls([scene for scene, _ in examples], [text for _, text in examples], seed, crowded)

    def __len__(self) -> int:
        return len(self.captions)

    def first(self, count: int) -> "Prompts":
        """The first `count` prompts; their images do not change."""
        return replace(self, scenes=self.scenes[:count], captions=self.captions[:count])

    @property
    def digest(self) -> str:
        """Identifies a set of prompts: results on different prompts cannot be paired."""
        return hashlib.sha256("\n".join(self.captions).encode()).hexdigest()[:16]

    def groups(self, batch: int) -> Iterator[PromptGroup]:
        """All prompts, at most `batch` at a time. The seed of a prompt does not depend on `batch`."""
        for bucket, (height, width) in enumerate(BUCKETS):
            members = range(bucket, len(self), len(BUCKETS))
            for at in range(0, len(members), batch):
                yield PromptGroup(height, width, members[at:at + batch], self.run * _RUN + bucket * _BUCKET + at)

    def real(self) -> BenchImages:
        """The rendered image of every scene."""
        parts = []
        for bucket, size in enumerate(BUCKETS):
            arrays = [render_scene(self.scenes[i], *size, image_lot(i, self.seed, "held-out"))
                      for i in range(bucket, len(self), len(BUCKETS))]
            parts += [torch.stack([torch.from_numpy(array) for array in arrays]).permute(0, 3, 1, 2)] if arrays else []
        return BenchImages(tuple(parts))
