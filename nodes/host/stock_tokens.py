"""Prompts as tokens of the host's own T5, as CLIPLoader loads it."""
from collections.abc import Iterable, Sequence
from typing import Any

from ...pixart.text import PromptReport, clean_caption
from ...pixart.text.emphasis import WeightedText, weighted_parts, whole_characters, written_prompt
from ...pixart.text.t5 import PAD
from .prompt_request import Rules

HOST_KEY = "t5xxl"             # of its tokens in the token dictionary


def host_tokens(clip: Any, text: str, rules: Rules, emphasis: bool = False) -> tuple[dict[str, list], PromptReport]:
    """Tokens of the host's own T5 (CLIPLoader, type pixart), cut to the trained length, end token kept.

    Without the padding that the T5 of its other types appends: that is neither text nor counted.
    """
    parts = weighted_parts(text) if emphasis else (WeightedText(whole_characters(text)),)
    if rules.clean:
        parts = tuple(WeightedText(clean_caption(part.text), part.weight) for part in parts)
    cleaned = (" " if rules.clean else "").join(part.text for part in parts if part.text)
    tokens = clip.tokenize(written_prompt(parts))
    if set(tokens) != {HOST_KEY}:
        raise ValueError(other_encoders(tokens))
    every = unpadded([pair for chunk in tokens[HOST_KEY] for pair in chunk])
    if len(every) <= rules.limit:
        return {HOST_KEY: [every]}, PromptReport(text, cleaned, len(every), len(every), rules.limit)
    lost = every[rules.limit - 1:-1]
    cut = "".join(word for _, word in clip.tokenizer.untokenize(lost)).replace("\u2581", " ").strip()
    short = every[:rules.limit - 1] + every[-1:]
    return {HOST_KEY: [short]}, PromptReport(text, cleaned, len(short), len(every), rules.limit, cut)


def other_encoders(tokens: Iterable[str]) -> str:
    """What is wrong with a CLIP that makes such tokens."""
    return (f"this CLIP holds {', '.join(tokens)}; PixArt needs T5-XXL alone. Use Load T5, or the stock CLIPLoader "
            "with type pixart.")


def unpadded(pairs: Sequence[tuple]) -> list[tuple]:
    """(token, weight, ...) each, without the padding at the end. Tokens of the host may be tensors as well."""
    last = max((place for place, (token, *_) in enumerate(pairs) if not (isinstance(token, int) and token == PAD)),
               default=0)
    return list(pairs[:last + 1])
