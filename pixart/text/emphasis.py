"""Emphasis in prompts as users of ComfyUI write it: (words:1.3), (words) for 1.1, and \\( for a bracket itself.

Nested bare brackets multiply by 1.1; a number replaces the weight around it. Brackets without a partner are text.
Features are weighted as ComfyUI's own T5 weights them: token by token away from those of an all-padding prompt.
"""
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BARE = 1.1                  # the weight of brackets without a number
DEEPEST_EMPHASIS = 32       # brackets within brackets; 1.1 to this power is 21 already
_OPEN, _CLOSE = "\ud800", "\ud801"      # stand for escaped brackets; valid text has no lone surrogates
_ESCAPED = ((r"\(", _OPEN, "("), (r"\)", _CLOSE, ")"))


@dataclass(frozen=True)
class WeightedText:
    """Text without brackets, and its weight; 1 leaves it as it is."""

    text: str
    weight: float = 1.0


def whole_characters(text: str) -> str:
    """Text that can be encoded: surrogate pairs are joined, and a lone surrogate becomes U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def weighted_parts(prompt: str) -> tuple[WeightedText, ...]:
    """The weighted parts of a prompt in order, escapes resolved; one empty part where there is no text.

    Raises ValueError for a weight that is not a finite number and for brackets nested deeper than `DEEPEST_EMPHASIS`.
    """
    text = whole_characters(prompt)
    for escaped, mark, _ in _ESCAPED:
        text = text.replace(escaped, mark)
    found = [WeightedText(_plain(piece), weight) for piece, weight in _weighted(text, 1.0, 0)]
    return tuple(part for part in found if part.text) or (WeightedText(""),)


def escape(text: str) -> str:
    """The prompt for this text taken literally, with its brackets escaped."""
    return re.sub(r"([()])", r"\\\1", text)


def written_prompt(parts: Sequence[WeightedText]) -> str:
    """The prompt of these parts; the inverse of `weighted_parts`."""
    if len(parts) == 1 and parts[0].weight == 1:
        return escape(parts[0].text)
    return "".join(f"({escape(part.text)}:{part.weight!r})" for part in parts)


def weigh_tokens(features: Tensor, padding: Tensor, weights: Sequence[float]) -> Tensor:
    """features and padding (L, C), one weight a token -> (L, C): padding + weight * (features - padding)."""
    scale = torch.tensor(weights, dtype=features.dtype, device=features.device)[:, None]
    return torch.where(scale == 1, features, padding + scale * (features - padding))


def _plain(text: str) -> str:
    for _, mark, bracket in _ESCAPED:
        text = text.replace(mark, bracket)
    return text


def _weighted(text: str, weight: float, depth: int) -> Iterator[tuple[str, float]]:
    if depth > DEEPEST_EMPHASIS:
        raise ValueError(f"the prompt has brackets {depth} deep, and at most {DEEPEST_EMPHASIS} are read. "
                         r"Remove some, or write \( and \) for brackets that are text.")
    for piece in _outermost(text):
        if len(piece) < 2 or piece[0] != "(" or piece[-1] != ")":
            yield piece, weight
            continue
        inner, own = _numbered(piece[1:-1])
        yield from _weighted(inner, weight * BARE if own is None else own, depth + 1)


def _outermost(text: str) -> Iterator[str]:
    """Pieces inside and outside of the outermost brackets."""
    depth = start = 0
    for at, character in enumerate(text):
        if character == "(":
            if depth == 0 and at > start:
                yield text[start:at]
                start = at
            depth += 1
        elif character == ")":
            depth -= 1
            if depth == 0:
                yield text[start:at + 1]
                start = at + 1
    if start < len(text):
        yield text[start:]


def _numbered(inner: str) -> tuple[str, float | None]:
    """`words:1.3` -> words and 1.3; None where there is no number."""
    words, colon, number = inner.rpartition(":")
    if not colon or not words:
        return inner, None
    try:
        weight = float(number)
    except ValueError:
        return inner, None
    if not math.isfinite(weight):
        raise ValueError(f"the weight {number.strip()[:20]!r} in the prompt is not a finite number; write one such as "
                         "1.2, or no colon")
    return words, weight
