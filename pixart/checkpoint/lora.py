"""A LoRA in one form, whatever file it came from: low-rank changes of row slices of the reference layout's weights.

A change of rank r to `rows` rows of a weight is scale * up @ down, with down (r, in) and up (rows, r); the patch
convolution has down (r, channels, p, p). DoRA (arXiv 2402.09353) also gives each changed row its length anew.
"""
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

MICRO_CONDITIONING = ("csize_embedder.", "ar_embedder.")    # where a base may lack what a LoRA was trained on


@dataclass(frozen=True)
class LoraPart:
    """The change of one row slice: slice `part` of `parts` equal ones of `module`'s weight."""

    module: str                          # in the reference layout, such as "blocks.3.attn.qkv"
    part: int
    parts: int
    down: Tensor                         # (r, in) or (r, in, p, p)
    up: Tensor                           # (rows, r)
    scale: float
    magnitude: Tensor | None = None      # (rows,), the lengths of the changed rows: DoRA
    keys: tuple[str, ...] = ()           # the tensors in the file that it was read from

    @property
    def rank(self) -> int:
        return self.up.shape[1]

    @property
    def rows(self) -> tuple[int, int]:
        """First row and number of rows."""
        return self.part * self.up.shape[0], self.up.shape[0]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the whole weight it belongs to."""
        return self.up.shape[0] * self.parts, *self.down.shape[1:]

    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """scale * up @ down, (rows, in) or (rows, in, p, p)."""
        product = self.up.to(dtype) @ self.down.flatten(1).to(dtype)
        return (self.scale * product).unflatten(1, self.down.shape[1:])

    def change(self, rows: Tensor) -> Tensor:
        """What full strength adds to the slice (rows, ...) of the weight, in its dtype, float32 or better."""
        delta = self.delta(rows.dtype).to(rows.device)
        if self.magnitude is None:
            return delta
        turned = rows + delta
        lengths = turned.flatten(1).norm(dim=1).clamp(min=torch.finfo(turned.dtype).tiny)
        factor = self.magnitude.to(turned) / lengths
        return turned * factor.view(-1, *[1] * (turned.ndim - 1)) - rows

    def split(self, count: int) -> tuple["LoraPart", ...]:
        """The same change of a whole weight as changes of `count` equal slices, which share `down`. Exact."""
        if count == self.parts:
            return (self,)
        if self.parts != 1:
            raise ValueError(f"{self.module} is already split in {self.parts}, it cannot be split in {count}")
        magnitudes = (None,) * count if self.magnitude is None else self.magnitude.chunk(count)
        return tuple(replace(self, part=part, parts=count, up=up, magnitude=magnitude)
                     for part, (up, magnitude) in enumerate(zip(self.up.chunk(count), magnitudes)))


@dataclass(frozen=True)
class Lora:
    """All changes of one file, and what a person should know about it."""

    parts: tuple[LoraPart, ...]
    layout: str = "PixArt"               # "PEFT", "diffusers", "kohya" ...
    alpha_from: str = ""                 # where the scale was found
    ignored: tuple[str, ...] = ()        # tensors in the file that are not used
    path: Path | None = None

    @property
    def used(self) -> int:
        return sum(len(part.keys) for part in self.parts)

    @property
    def dora(self) -> bool:
        return any(part.magnitude is not None for part in self.parts)

    @property
    def description(self) -> str:
        """One line such as "LoRA, PEFT layout, rank 16, scale 0.5 (alpha 8 from ...), 420 of 420 keys used"."""
        words = [f"{'DoRA' if self.dora else 'LoRA'}, {self.layout} layout",
                 f"rank {spread([part.rank for part in self.parts])}",
                 f"scale {spread([part.scale for part in self.parts])}" + (f" ({self.alpha_from})" if self.alpha_from
                                                                           else "")]
        words.append(f"{self.used} of {self.used + len(self.ignored)} keys used")
        if self.ignored:
            words.append(f"ignored: {', '.join(self.ignored[:3])}" + (", ..." if len(self.ignored) > 3 else ""))
        return ", ".join(words)

    def fitted(self, shapes: Mapping[str, tuple[int, ...]]) -> "Lora":
        """The LoRA for a model with these weights: reference name with .weight -> shape.

        What belongs to the size embedders goes to `ignored` where the model has none. Raises ValueError for a model of
        another width or depth.
        """
        absent = [part for part in self.parts if f"{part.module}.weight" not in shapes]
        strange = [part for part in absent if not part.module.startswith(MICRO_CONDITIONING)]
        if strange:
            raise ValueError(f"{self.name} changes {strange[0].module}, which this model lacks: the LoRA was made for "
                             f"another model{depths(self.parts, shapes)}. Choose the model it was trained on.")
        kept = tuple(part for part in self.parts if f"{part.module}.weight" in shapes)
        for part in kept:
            wanted = tuple(shapes[f"{part.module}.weight"])
            if part.weight_shape != wanted:
                raise ValueError(f"{self.name} changes {part.module} as a weight of shape {part.weight_shape}, in this "
                                 f"model it is {wanted}: the LoRA was made for a model of another width or family.")
        return replace(self, parts=kept, ignored=self.ignored + tuple(key for part in absent for key in part.keys))

    @property
    def name(self) -> str:
        return str(self.path) if self.path else "the LoRA"


def spread(values: list[float]) -> str:
    """"16", or "8 to 16" where they differ."""
    low, high = min(values), max(values)
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def depths(parts: tuple[LoraPart, ...], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """" (30 blocks instead of 28)", where the number of blocks is the reason."""
    def blocks(names: list[str]) -> int:
        return 1 + max((int(name.split(".")[1]) for name in names if name.startswith("blocks.")), default=-1)

    theirs, ours = blocks([part.module for part in parts]), blocks(list(shapes))
    return f" ({theirs} blocks instead of {ours})" if theirs > ours else ""


@torch.no_grad()
def merge_lora(model: nn.Module, lora: Lora, strength: float = 1.0) -> Lora:
    """Change a PixArtTransformer's weights in place, each by strength times what the LoRA adds to it.

    Computed in float32, or in float64 for a float64 model, then rounded to the weight's dtype. Strength 0 touches
    nothing. Returns the LoRA as it was used, whose `description` tells the number of keys. Raises ValueError if it
    does not fit; then nothing was changed.
    """
    weights = dict(model.named_parameters())
    lora = lora.fitted({name: tuple(weight.shape) for name, weight in weights.items()})
    if strength == 0:
        return lora
    for part in lora.parts:
        weight, (start, count) = weights[f"{part.module}.weight"], part.rows
        rows = weight[start:start + count]
        exact = rows.to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
        rows.copy_(exact + strength * part.change(exact))
    return lora
