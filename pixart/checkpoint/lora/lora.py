"""A LoRA in one form, whatever file it came from: changes of row slices of the reference layout's weights.

A change of rank r to `rows` rows of a weight is scale * up @ down, with down (r, in) and up (rows, r); the patch
convolution has down (r, channels, p, p). Other adapters have formulas of their own, see `changes`.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...quantize.layer import QuantizedLinear
from ...weights.values import is_finite
from ..flexdit import FLEXDIT_MARK
from .changes import TABLE, Change, Scaled

MICRO_CONDITIONING = ("csize_embedder.", "ar_embedder.")    # modules of a LoRA that its base may lack


@dataclass(frozen=True)
class LoraPart(Scaled):
    """The low-rank change of one row slice: slice `part` of `parts` equal ones of `module`'s weight."""

    method: ClassVar[str] = "LoRA"
    module: str                          # in the reference layout, such as "blocks.3.attn.qkv"
    part: int
    parts: int
    down: Tensor                         # (r, in) or (r, in, p, p); kernels may lie flat, (r, in * p * p)
    up: Tensor                           # (rows, r)
    scale: float
    magnitude: Tensor | None = None      # DoRA: (rows,) or (1, columns), see Scaled
    keys: tuple[str, ...] = ()           # the tensors in the file that it was read from
    mid: Tensor | None = None            # (r, r, p, p), a kernel between both, down (r, in) then
    bias: bool = False

    @property
    def rank(self) -> int:
        return self.up.shape[1]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the whole weight it belongs to."""
        return self.up.shape[0] * self.parts, *self.down.shape[1:]

    def product(self, rows: Tensor) -> Tensor:
        if self.mid is None:
            return self.up.to(rows) @ self.down.flatten(1).to(rows)
        return torch.einsum("o r, r s h w, s i -> o i h w", self.up.to(rows), self.mid.to(rows),
                            self.down.flatten(1).to(rows))

    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """scale * up @ down, (rows, in) or (rows, in, p, p)."""
        like = torch.empty((), dtype=dtype, device=self.up.device)
        return (self.scale * self.product(like)).unflatten(1, self.down.shape[1:]) if self.mid is None else (
            self.scale * self.product(like))

    def split(self, count: int) -> tuple["LoraPart", ...]:
        """The same change of a whole weight as changes of `count` equal slices, which share `down`. Exact."""
        if count == self.parts:
            return (self,)
        if self.parts != 1:
            raise ValueError(f"{self.module} is already split in {self.parts}, it cannot be split in {count}")
        magnitudes: Sequence[Tensor | None] = [None] * count
        if self.magnitude is not None:
            magnitudes = self.magnitude.chunk(count)
        return tuple(replace(self, part=part, parts=count, up=up, magnitude=magnitude)
                     for part, (up, magnitude) in enumerate(zip(self.up.chunk(count), magnitudes, strict=True)))


@dataclass(frozen=True)
class Lora:
    """All changes of one file, and what to tell the user about it."""

    parts: tuple[Change, ...]
    layout: str = "PixArt"               # "PEFT", "diffusers", "kohya" ...
    alpha_from: str = ""                 # where the scale was found
    ignored: tuple[str, ...] = ()        # tensors in the file that are not used
    path: Path | None = None

    @property
    def used(self) -> int:
        return len({key for part in self.parts for key in part.keys})

    @property
    def dora(self) -> bool:
        return any(isinstance(part, Scaled) and part.magnitude is not None for part in self.parts)

    @property
    def method(self) -> str:
        """"LoRA", or "LoKr and full difference", with DoRA in place of LoRA where magnitudes are given."""
        methods = list(dict.fromkeys(part.method for part in self.parts))
        if self.dora:
            methods = ["DoRA" if method == "LoRA" else f"{method} with DoRA" if number == 0 else method
                       for number, method in enumerate(methods)]
        return " and ".join(methods) or "nothing"

    @property
    def description(self) -> str:
        """One line such as "LoRA, PEFT layout, rank 16, scale 0.5 (alpha 8 from ...), 420 of 420 keys used"."""
        words = [f"{self.method}, {self.layout} layout"]
        ranks = [part.rank for part in self.parts if isinstance(part, LoraPart)]
        scales = [part.scale for part in self.parts if isinstance(part, Scaled)]
        if ranks:
            words.append(f"rank {range_text(ranks)}")
        if scales:
            words.append(f"scale {range_text(scales)}" + (f" ({self.alpha_from})" if self.alpha_from else ""))
        words.append(f"{self.used} of {self.used + len(self.ignored)} keys used")
        if self.ignored:
            words.append(f"ignored: {', '.join(self.ignored[:3])}" + (", ..." if len(self.ignored) > 3 else ""))
        return ", ".join(words)

    def fitted(self, shapes: Mapping[str, tuple[int, ...]]) -> "Lora":
        """The LoRA for a model with these parameters: reference name with .weight or .bias -> shape.

        Parts of size embedders go to `ignored` if the model has none, and so do those of modulation tables that the
        model cannot change. Raises ValueError for a model of another width or depth.
        """
        if any(name.endswith(FLEXDIT_MARK) for name in shapes):
            raise ValueError("a LoRA does not fit a FlexDiT, whose blocks have other weights; merge it into the PixArt "
                             f"model before that is converted. File: {self.path}")
        absent = [part for part in self.parts if part.target not in shapes]
        strange = [part for part in absent if not part.module.startswith(MICRO_CONDITIONING)
                   and not (part.module.endswith(TABLE) and part.module in shapes)]
        if strange:
            raise ValueError(f"the LoRA changes {strange[0].module}, which this model lacks: it was made for another "
                             f"model{depths(self.parts, shapes)}. Choose the model it was trained on. File: "
                             f"{self.path}")
        kept = tuple(part for part in self.parts if part.target in shapes)
        for part in kept:
            wanted = tuple(shapes[part.target])
            reason = part.refusal(wanted)
            if reason:
                as_what = f" as a weight of shape {part.weight_shape}" if isinstance(part, LoraPart) else ""
                raise ValueError(f"the LoRA changes {part.module}{as_what}, in this model it is {wanted}: it was made "
                                 f"for a model of another width or family ({reason}). File: {self.path}")
        return replace(self, parts=kept, ignored=self.ignored + tuple(key for part in absent for key in part.keys))


def range_text(values: Sequence[float]) -> str:
    """"16", or "8 to 16" where they differ."""
    low, high = min(values), max(values)
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def depths(parts: tuple[Change, ...], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """" (30 blocks instead of 28)", where the number of blocks is the reason."""
    def blocks(names: list[str]) -> int:
        return 1 + max((int(name.split(".")[1]) for name in names if name.startswith("blocks.")), default=-1)

    theirs, ours = blocks([part.module for part in parts]), blocks(list(shapes))
    return f" ({theirs} blocks instead of {ours})" if theirs > ours else ""


def refuse_quantized_layers(model: nn.Module, lora: Lora) -> None:
    """ValueError where the LoRA changes a layer that is kept quantised, to whose weights nothing can be added."""
    quantized = {name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    changed = next((part.module for part in lora.parts if part.module in quantized), None)
    if changed is not None:
        raise ValueError(f"the LoRA changes {changed}, which is kept quantised; load the model with quantized=False, "
                         f"which dequantises it. File: {lora.path}")


@torch.no_grad()
def merge_lora(model: nn.Module, lora: Lora, strength: float = 1.0) -> Lora:
    """Change a PixArtTransformer's weights in place, each by strength times what the LoRA adds to it.

    Computed in float32, or in float64 for a float64 model, then rounded to the weight's dtype. Strength 0 touches
    nothing. Returns the LoRA as it was used, whose `description` tells the number of keys. Raises ValueError if it
    does not fit, or a layer is quantised; then nothing was changed. Raises it too where a sum is not finite; the
    model is then changed in part and must be discarded.
    """
    refuse_quantized_layers(model, lora)
    weights = dict(model.named_parameters())
    lora = lora.fitted({name: tuple(weight.shape) for name, weight in weights.items()})
    if strength == 0:
        return lora
    for part in lora.parts:
        weight = weights[part.target]
        start, count = part.rows(tuple(weight.shape))
        rows = weight[start:start + count]
        exact = rows.to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
        merged = (exact + strength * part.on(exact.device).change(exact)).to(weight.dtype)
        if not is_finite(merged):
            raise ValueError(f"the LoRA makes {part.target} too large to be a finite number at strength {strength:g}: "
                             f"its numbers or its alpha are wrong. File: {lora.path}")
        rows.copy_(merged)
    return lora
