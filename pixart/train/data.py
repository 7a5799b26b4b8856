"""What a training learns from: batches, either drawn from a prepared folder or made as they are needed.

A folder is read row by row and may be larger than memory. It holds shards `bucket-{h}x{w}-{number}.safetensors` (h, w
latent sides) and `null.safetensors`; what is in them is said in `pixart.prepare`, which writes them.
"""
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..prepare.shards import Shard, load_null, shard_paths
from .draws import draw_rows, on_cpu
from .transfer import send


@dataclass(frozen=True)
class Batch:
    """Images of one size: latents (B, C, h, w), context (B, L, width), mask (B, L) bool, size (B, 2), aspect (B,).

    hint (B, C, h, w) is the latent of the images' edge maps, noise (B, C, h, w) what a teacher made the latents from;
    None where the folder has none.
    """

    latents: Tensor
    context: Tensor
    mask: Tensor
    size: Tensor
    aspect: Tensor
    hint: Tensor | None = None
    noise: Tensor | None = None

    def conditions(self) -> dict[str, Tensor]:
        """Inputs of the transformer besides latent and timestep, under its argument names."""
        return {"context": self.context, "mask": self.mask, "size": self.size, "aspect": self.aspect}

    def to(self, device: torch.device) -> "Batch":
        moved: dict[str, Any] = {name: value if value is None else send(value, device)
                                 for name, value in vars(self).items()}
        return Batch(**moved)


class TrainingData(Protocol):
    """Where the batches of a training come from. `len` may be missing: data without end."""

    def batch(self, generator: torch.Generator, size: int) -> Batch:
        """`size` images of one shape, on whatever device they are made.

        What is random follows from the generator alone, row by row as `draw_rows` does it, so that a step can be
        repeated and split. With `LoopConfig.random_on_device` the generator is one of the device that trains.
        """
        ...

    def without_caption(self, batch: Batch, rows: Tensor | None = None) -> Batch:
        """The batch with the null caption in the given rows (B,) bool, or in all of them, wherever the batch lies."""
        ...


class PreparedFolder:
    """Random batches from a prepared folder, each picked by (seed, step) alone: any step can be drawn again.

    Shards are mapped into memory, so opening reads their headers only. `need_hints`: refuse a folder without edge maps.
    Raises FileNotFoundError for a folder without data, ValueError that names the file for damaged shards and for
    shards that do not belong together.
    """

    def __init__(self, folder: str | Path, need_hints: bool = False) -> None:
        self.folder = folder = Path(folder)
        paths = shard_paths(folder)
        if not paths or not (folder / "null.safetensors").exists():
            raise FileNotFoundError(f"{folder} holds no prepared training data: expected bucket-*.safetensors and "
                                    "null.safetensors. Prepare the images first: python -m pixart prepare")
        shards = [Shard(path) for path in paths]
        check_alike(shards)
        if need_hints and "hints" not in shards[0].tensors:
            raise ValueError(f"{folder} holds no edge maps (`hints` in {paths[0].name}), which training a ControlNet "
                             "needs; prepare the images with --edges canny, soft or hed")
        self.null_context, self.null_mask = load_null(folder)
        self._null: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self.caption_width = shards[0].tensors["features"].shape[2]
        if self.null_context.shape[1] != self.caption_width:
            raise ValueError(f"{folder / 'null.safetensors'} has features of width {self.null_context.shape[1]}, the "
                             f"shards of width {self.caption_width}; both must come from the same text encoder")
        self.caption_tokens = max(len(self.null_mask), *(shard.caption_tokens for shard in shards))
        self.latent_space = shards[0].metadata.get("latent_space")
        self.edges = shards[0].metadata.get("edges", "none")
        self.buckets: dict[str, list[Shard]] = {}
        for shard in shards:
            if len(shard):
                self.buckets.setdefault(shard.bucket, []).append(shard)
        if not self.buckets:
            raise ValueError(f"all shards in {folder} are empty; prepare images into it")

    @property
    def captions_only(self) -> bool:
        """Whether there are captions and image sizes but no images: latents without channels."""
        return all(shard.tensors["latents"].shape[1] == 0 for shards in self.buckets.values() for shard in shards)

    def __len__(self) -> int:
        return sum(len(shard) for shards in self.buckets.values() for shard in shards)

    def batch(self, generator: torch.Generator, size: int) -> Batch:
        """`size` images of one bucket; buckets come up as often as they hold images.

        Where the spread of the latents was kept, each is a fresh draw: mean + spread * noise.
        """
        generator, buckets = on_cpu(generator), list(self.buckets.values())
        counts = torch.tensor([float(sum(map(len, shards))) for shards in buckets])
        shards = buckets[int(torch.multinomial(counts, 1, generator=generator))]
        rows = draw_rows(partial(torch.randint, sum(map(len, shards))), (size,), generator)
        names = shards[0].tensors.keys()
        found = {name: self._gather(shards, name, rows) for name in names if name not in ("features", "mask")}
        mask = self._gather(shards, "mask", rows, self.caption_tokens)
        tokens = self._width(mask)
        context, mask = self._gather(shards, "features", rows, tokens), mask[:, :tokens]
        return Batch(_draw(found, "latents", "spread", generator), context.float(), mask.bool(),
                     found["size"].float(), found["aspect"].float(),
                     _draw(found, "hints", "hints_spread", generator) if "hints" in found else None,
                     found["noise"].float() if "noise" in found else None)

    def _width(self, mask: Tensor) -> int:
        """Tokens that captions with this mask (B, L) are kept in: a multiple of 8, so that few widths come up."""
        used = mask.any(0).nonzero()
        longest = max(int(used[-1]) + 1 if len(used) else 1, len(self.null_mask))
        return min(-(-longest // 8) * 8, self.caption_tokens)

    def _gather(self, shards: list[Shard], name: str, rows: Tensor, tokens: int | None = None) -> Tensor:
        """Rows of a bucket, numbered over all its shards; with `tokens`, dimension 1 is padded or cut to it."""
        ends = torch.tensor([len(shard) for shard in shards]).cumsum(0)
        owners = torch.searchsorted(ends, rows, right=True)
        parts, places = [], []
        for owner in owners.unique().tolist():
            here = (owners == owner).nonzero()[:, 0]
            part = shards[owner].rows(name, rows[here] - (ends[owner] - len(shards[owner])))
            if tokens is not None:
                part = F.pad(part, (*[0] * (2 * part.ndim - 4), 0, tokens - part.shape[1]))
            parts.append(part)
            places.append(here)
        return parts[0] if len(parts) == 1 else torch.cat(parts)[torch.cat(places).argsort()]

    def without_caption(self, batch: Batch, rows: Tensor | None = None) -> Batch:
        """The batch with the null caption in the given rows (B,) bool, or in all of them."""
        device = batch.context.device
        if device not in self._null:            # copied there once
            self._null[device] = self.null_context.to(device), self.null_mask.to(device)
        return without_caption(batch, *self._null[device], rows)


def without_caption(batch: Batch, null_context: Tensor, null_mask: Tensor, rows: Tensor | None = None) -> Batch:
    """The batch with a null caption, context (n, C) and mask (n,), in the given rows (B,) bool, or in all of them."""
    padding = batch.context.shape[1] - len(null_mask)
    context = F.pad(null_context, (0, 0, 0, padding)).to(batch.context)
    mask = F.pad(null_mask, (0, padding)).to(batch.mask.device)
    if rows is None:
        rows = torch.ones(len(batch.mask), dtype=torch.bool, device=batch.mask.device)
    return replace(batch, context=torch.where(rows[:, None, None], context, batch.context),
                   mask=torch.where(rows[:, None], mask, batch.mask))


def _draw(found: dict[str, Tensor], mean: str, spread: str, generator: torch.Generator) -> Tensor:
    """A sample of the autoencoder's posterior, or its mean where no spread was kept."""
    value = found[mean].float()
    if spread not in found:
        return value
    return value + found[spread].float() * draw_rows(torch.randn, value.shape, generator)


def check_alike(shards: list[Shard]) -> None:
    """Refuse shards that were prepared for different models."""
    first = shards[0]
    for shard in shards[1:]:
        for what, value in shard.kind.items():
            if value != first.kind[what]:
                raise ValueError(f"{shard.path.name} and {first.path.name} in {first.path.parent} do not belong "
                                 f"together: {what} is {value} in one and {first.kind[what]} in the other. Prepare "
                                 "each kind into a folder of its own")
