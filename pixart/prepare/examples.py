"""From an entry to an example: what is read from files, and what the networks compute, a few images at a time."""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .ahead import ahead
from .buckets import SHARP, Slot
from .captions import Captions, half
from .computed import BrokenFile, read_features, read_moments
from .families import Family
from .images import BrokenImage, load_image
from .items import Item
from .latents import EdgeMaps
from .networks import ImageEncoder
from .shards import stacked_features
from .state import Skipped, stamp_of
from .survey import Entry

Posterior = tuple[Tensor, Tensor | None]        # mean and standard deviation (C, h, w) fp16, scaled; or no deviation


@dataclass
class Example:
    """One row of a shard; `image` uint8 (3, H, W) is there until the networks have seen it."""

    key: str
    slot: Slot
    features: Tensor                    # (l, width) fp16 of the real tokens
    mark: str = ""                      # of the item
    image: Tensor | None = None
    latents: Posterior | None = None
    hint: Posterior | None = None


def uses_hint(item: Item, edges: str) -> bool:
    """Whether the latents of the edge map were computed before; the official ones are of HED maps."""
    return edges == "hed" and item.hint is not None


@dataclass(frozen=True)
class ExampleReader:
    """Turns entries of one bucket into examples."""

    captions: Captions
    vae: ImageEncoder | None          # None where all latents were computed before
    maps: EdgeMaps | None               # None without edge maps, or where all were computed before
    family: Family
    resolution: int
    edges: str
    batch: int
    workers: int

    def examples(self, entries: Sequence[Entry], skipped: list[Skipped]) -> Iterator[Example]:
        """The examples of one bucket in order; what cannot be read is added to `skipped` instead."""
        waiting: list[Example] = []
        for loaded in ahead(self.load, entries, self.workers):
            if isinstance(loaded, Skipped):
                skipped.append(loaded)
                continue
            waiting.append(loaded)
            if len(waiting) == self.batch:
                yield from self._finished(waiting)
                waiting = []
        yield from self._finished(waiting)

    def load(self, entry: Entry) -> Example | Skipped:
        """Everything about an entry that is read from files."""
        item, slot = entry.item, entry.slot
        try:
            example = Example(item.key, slot, self._features(entry), item.mark())
            if item.moments is not None:
                example.latents = self._moments(item.moments, slot)
            if item.hint is not None and uses_hint(item, self.edges):
                example.hint = self._moments(item.hint, slot)
            if example.latents is None or (self.edges != "none" and example.hint is None):
                example.image = load_image(item.place(), slot.pixels, self.resolution >= SHARP)
            return example
        except (BrokenImage, BrokenFile) as error:
            return Skipped(item.key, str(error), stamp_of(item))

    def _features(self, entry: Entry) -> Tensor:
        if entry.text is not None:
            return self.captions.features(entry.text)
        if entry.item.features is None:
            raise BrokenFile("it has neither a caption nor text features")
        return half(read_features(entry.item.features, self.family.tokens), entry.item.features)

    def _moments(self, path: Path, slot: Slot) -> Posterior:
        mean, deviation = read_moments(path)
        if tuple(mean.shape[1:]) != slot.sides:
            raise BrokenFile(f"its {path.name} has sides {tuple(mean.shape[1:])}, its latents {slot.sides}")
        return half(mean * self.family.scale, path), half(deviation * self.family.scale, path)

    def _finished(self, examples: list[Example]) -> list[Example]:
        """Let the networks see the images of a few examples, and drop the images."""
        plain = [example for example in examples if example.latents is None]
        if plain and self.vae is not None:
            for example, latents in zip(plain, _encode(self.vae, _batch(plain))):
                example.latents = latents
        if self.edges != "none":
            blind = [example for example in examples if example.hint is None]
            if blind and self.vae is not None and self.maps is not None:
                for example, hint in zip(blind, _encode(self.vae, self.maps(_batch(blind)))):
                    example.hint = hint
        for example in examples:
            example.image = None
        return examples


def _batch(examples: list[Example]) -> Tensor:
    images = [example.image for example in examples if example.image is not None]
    return torch.stack(images).float().div(255)


def _encode(vae: ImageEncoder, images: Tensor) -> Iterator[Posterior]:
    mean, deviation = vae(images)
    return ((mean[row], None if deviation is None else deviation[row]) for row in range(len(mean)))


def stack(examples: Sequence[Example]) -> dict[str, Tensor]:
    """The tensors of a shard, see `pixart.prepare`; captions as long as the longest among them."""
    tensors = {
        **stacked_features([example.features for example in examples]),
        "size": torch.tensor([example.slot.size for example in examples], dtype=torch.float32),
        "aspect": torch.tensor([example.slot.aspect for example in examples], dtype=torch.float32),
    }
    for part, mean, spread in (("latents", "latents", "spread"), ("hint", "hints", "hints_spread")):
        found = [getattr(example, part) for example in examples]
        if found[0] is not None:
            tensors[mean] = torch.stack([one[0] for one in found])
            if found[0][1] is not None:
                tensors[spread] = torch.stack([one[1] for one in found])
    return tensors
