"""Training data that was encoded beforehand: latents, text features and sizes in one safetensors file a bucket.

A folder holds `bucket-{h}x{w}.safetensors` (h, w latent sides) with `latents` (n, C, h, w) already scaled,
`features` (n, L, width), `mask` (n, L), `size` (n, 2) pixels and `aspect` (n,), where edges were prepared too `hints`
like `latents`, and `null.safetensors` with the `features` (l, width) and `mask` (l,) that stand for "no caption".
"""
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Batch:
    """Pictures of one size: latents (B, C, h, w), context (B, L, width), mask (B, L) bool, size (B, 2), aspect (B,).

    hint (B, C, h, w) is the latent of the pictures' edge maps, None where the folder has none.
    """

    latents: Tensor
    context: Tensor
    mask: Tensor
    size: Tensor
    aspect: Tensor
    hint: Tensor | None = None

    def conditions(self) -> dict[str, Tensor]:
        """What the transformer wants to know beside latent and timestep, under its argument names."""
        return {"context": self.context, "mask": self.mask, "size": self.size, "aspect": self.aspect}

    def to(self, device: torch.device) -> "Batch":
        return Batch(**{name: value if value is None else value.to(device) for name, value in vars(self).items()})


class PreparedFolder:
    """Random batches from a prepared folder, each picked by (seed, step) alone: any step can be drawn again."""

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        paths = sorted(folder.glob("bucket-*.safetensors"))
        if not paths or not (folder / "null.safetensors").exists():
            raise FileNotFoundError(f"{folder} holds no prepared training data: expected bucket-*.safetensors and "
                                    "null.safetensors. Prepare the pictures first.")
        self.buckets = [load_file(path) for path in paths]
        for path, bucket in zip(paths, self.buckets):
            missing = {"latents", "features", "mask", "size", "aspect"} - bucket.keys()
            if missing:
                raise ValueError(f"{path} lacks {', '.join(sorted(missing))}; prepare it again")
        null = load_file(folder / "null.safetensors")
        self.null_context, self.null_mask = null["features"].float(), null["mask"].bool()

    def __len__(self) -> int:
        return sum(len(bucket["latents"]) for bucket in self.buckets)

    def batch(self, generator: torch.Generator, size: int) -> Batch:
        """`size` pictures of one bucket; buckets come up as often as they hold pictures."""
        counts = torch.tensor([float(len(bucket["latents"])) for bucket in self.buckets])
        bucket = self.buckets[int(torch.multinomial(counts, 1, generator=generator))]
        rows = torch.randint(len(bucket["latents"]), (size,), generator=generator)
        return Batch(bucket["latents"][rows].float(), bucket["features"][rows].float(), bucket["mask"][rows].bool(),
                     bucket["size"][rows].float(), bucket["aspect"][rows].float(),
                     bucket["hints"][rows].float() if "hints" in bucket else None)

    def without_caption(self, batch: Batch, rows: Tensor | None = None) -> Batch:
        """The batch with the null caption in the given rows (B,) bool, or in all of them."""
        length = batch.context.shape[1]
        padding = length - len(self.null_mask)
        context = F.pad(self.null_context, (0, 0, 0, padding)).to(batch.context)
        mask = F.pad(self.null_mask, (0, padding)).to(batch.mask.device)
        if rows is None:
            rows = torch.ones(len(batch.mask), dtype=torch.bool, device=batch.mask.device)
        return replace(batch, context=torch.where(rows[:, None, None], context, batch.context),
                       mask=torch.where(rows[:, None], mask, batch.mask))
