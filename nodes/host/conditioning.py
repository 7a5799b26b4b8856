"""Text conditions that share one forward pass whatever their lengths.

The host merges two conditions into one pass only when every part of them can be concatenated. PixArt's text has no
positions, so tokens that a mask excludes are taken out, and what is left is padded when (and only when) conditions of
different lengths meet.
"""
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .mixin import Mixin


def compact_text(context: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, bool]:
    """Move the real tokens of every row to the front and drop what no row needs.

    context (B, L, C); mask (B or 1, L), nonzero = a real token, or None for all. Returns the shorter context
    (B, longest, C), zero behind the end of shorter rows, its mask (B, longest) int32, and whether any row is padded.
    Raises ValueError for a mask of another shape, or one that leaves nothing of a row.
    """
    if mask is None:
        return context, torch.ones(context.shape[:2], dtype=torch.int32, device=context.device), False
    if mask.ndim != 2 or mask.shape[1] != context.shape[1] or mask.shape[0] not in (1, context.shape[0]):
        raise ValueError(f"the attention mask of the conditioning has shape {tuple(mask.shape)}, its text "
                         f"{tuple(context.shape)}; expected one mask value per token. Conditions that carry a mask "
                         "cannot be concatenated; encode the prompts with PixArt Text Encode, which needs none.")
    keep = (mask != 0).to(context.device).expand(context.shape[:2])                 # (B, L)
    lengths = keep.sum(dim=1)                                                       # (B,)
    shortest, longest = int(lengths.min()), int(lengths.max())
    if shortest == 0:
        raise ValueError("the attention mask of the conditioning excludes every text token; "
                         "even an empty prompt has one (the end of the text)")
    rows = [pad_tokens(row[kept], longest) for row, kept in zip(context, keep)]
    real = torch.arange(longest, device=context.device) < lengths[:, None]          # (B, longest)
    return torch.stack(rows), real.int(), shortest < longest


def pad_tokens(context: Tensor, tokens: int) -> Tensor:
    """(..., L, C) -> (..., tokens, C), padded with zeros at the end."""
    return F.pad(context, (0, 0, 0, tokens - context.shape[-2]))


def mask_of(text_mask: Tensor | None) -> Tensor | None:
    """What the transformer takes: (B, L) bool, or None for a mask of no columns, which says that no row is padded."""
    return None if text_mask is None or text_mask.shape[1] == 0 else text_mask.bool()


class _Text(Mixin):
    """Context (B, L, C); padded to the longest when merged with others."""

    def can_concat(self, other: Any) -> bool:
        return self.cond.shape[2] == other.cond.shape[2] and self.cond.device == other.cond.device

    def concat(self, others: Sequence[Any]) -> Tensor:
        parts = [self.cond, *(other.cond for other in others)]
        longest = max(part.shape[1] for part in parts)
        return torch.cat([pad_tokens(part, longest) for part in parts])


class _TextMask(Mixin):
    """Mask (B, L) int32 of the context, which hosts do not round; a row for every row, so that any pack may repeat,
    cut and stack it.

    Merged where no row is padded it is (B, 0): attention without a mask is faster, and to find that out from its
    values would mean waiting for the device in every pass.
    """

    def __init__(self, cond: Tensor, padded: bool = True) -> None:
        super().__init__(cond)
        self.padded = padded

    def _copy_with(self, cond: Tensor) -> "_TextMask":
        return type(self)(cond, self.padded)

    def can_concat(self, other: Any) -> bool:
        return self.cond.device == other.cond.device

    def concat(self, others: Sequence[Any]) -> Tensor:
        parts = [self, *others]
        tokens = [part.cond.shape[1] for part in parts]
        if not any(part.padded for part in parts) and min(tokens) == max(tokens):
            tokens = [0] * len(parts)
        return torch.cat([F.pad(part.cond, (0, max(tokens) - part.cond.shape[1])) for part in parts])


@functools.cache
def cond_types() -> tuple[type, type]:
    """The two above as conditions of the host."""
    from comfy.conds import CONDRegular
    return type("TextCond", (_Text, CONDRegular), {}), type("TextMaskCond", (_TextMask, CONDRegular), {})


def text_conds(context: Tensor, mask: Tensor | None, device: Any = None) -> dict[str, object]:
    """What `extra_conds` of a model returns for its text, on the device of the sampling: moved there once, not in
    every pass."""
    compact, real, padded = compact_text(context, mask)
    text, text_mask = cond_types()
    return {"c_crossattn": text(compact.to(device=device)), "text_mask": text_mask(real.to(device=device), padded)}
