"""Text conditions that share one forward pass whatever their lengths.

The host merges two conditions into one pass only when every part of them can be concatenated. PixArt's text has no
positions, so tokens that a mask excludes are taken out, and what is left is padded when (and only when) conditions of
different lengths meet.
"""
import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def pack_text(context: Tensor, mask: Tensor | None) -> tuple[Tensor, tuple[int, ...]]:
    """Move the real tokens of every row to the front and drop what no row needs.

    context (B, L, C); mask (B or 1, L), nonzero = a real token, or None for all. Returns the packed context
    (B, longest, C), zero behind the end of shorter rows, and the number of tokens in each row.
    """
    if mask is None:
        return context, (context.shape[1],) * context.shape[0]
    if mask.ndim != 2 or mask.shape[1] != context.shape[1] or mask.shape[0] not in (1, context.shape[0]):
        raise ValueError(f"the attention mask of the conditioning has shape {tuple(mask.shape)}, its text "
                         f"{tuple(context.shape)}; expected one mask value per token. Conditions that carry a mask "
                         "cannot be concatenated; encode the prompts with PixArt Text Encode, which needs none.")
    keep = (mask != 0).to(context.device).expand(context.shape[:2])
    lengths = tuple(keep.sum(dim=1).tolist())
    if min(lengths) == 0:
        raise ValueError("the attention mask of the conditioning excludes every text token; "
                         "even an empty prompt has one (the end of the text)")
    rows = [pad_tokens(row[kept], max(lengths)) for row, kept in zip(context, keep)]
    return torch.stack(rows), lengths


def pad_tokens(context: Tensor, tokens: int) -> Tensor:
    """(..., L, C) -> (..., tokens, C), zeros behind."""
    return F.pad(context, (0, 0, 0, tokens - context.shape[-2]))


def mask_of(lengths: Sequence[int] | None, context: Tensor) -> Tensor | None:
    """(B, L) bool from the number of tokens per row, or None where no row is padded."""
    tokens = context.shape[1]
    if lengths is None or min(lengths) >= tokens:
        return None
    return torch.arange(tokens, device=context.device) < torch.tensor(lengths, device=context.device)[:, None]


class _Text:
    """Context (B, L, C); padded to the longest when merged with others."""

    def can_concat(self, other: object) -> bool:
        return self.cond.shape[2] == other.cond.shape[2] and self.cond.device == other.cond.device

    def concat(self, others: Sequence) -> Tensor:
        parts = [self.cond, *(other.cond for other in others)]
        longest = max(part.shape[1] for part in parts)
        return torch.cat([pad_tokens(part, longest) for part in parts])


class _Lengths:
    """Tokens per row as plain numbers: no device, no rounding, no waiting for a device to read them."""

    def process_cond(self, batch_size: int, **_: object) -> "_Lengths":
        repeats = -(-batch_size // len(self.cond))
        return self._copy_with((self.cond * repeats)[:batch_size])

    def _copy_with(self, cond: tuple[int, ...]) -> "_Lengths":
        return type(self)(cond)

    def can_concat(self, other: object) -> bool:
        return True

    def concat(self, others: Sequence) -> tuple[int, ...]:
        return sum((other.cond for other in others), self.cond)

    def size(self) -> list[int]:
        return [len(self.cond)]


@functools.cache
def cond_types() -> tuple[type, type]:
    """The two above as conditions of the host."""
    from comfy.conds import CONDRegular
    return type("TextCond", (_Text, CONDRegular), {}), type("LengthsCond", (_Lengths, CONDRegular), {})


def text_conds(context: Tensor, mask: Tensor | None) -> dict[str, object]:
    """What `extra_conds` of a model returns for its text."""
    packed, lengths = pack_text(context, mask)
    text, tokens = cond_types()
    return {"c_crossattn": text(packed), "text_lengths": tokens(lengths)}
