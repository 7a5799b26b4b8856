"""Prompts longer than PixArt's training captions: cut, encoded whole, or sentence by sentence (see `segments`)."""
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from .encoded import Encoded, join_encoded
from .segments import split_segments
from .tokens import PromptReport

MODES = ("truncate", "whole", "segments")
LONGEST_PROMPT = 4096   # tokens of a prompt encoded whole: T5 has no limit, memory has
SHOWN_OF_SEGMENT = 40   # characters of a segment in the report

Encode = Callable[[list[str], int], Encoded]         # (prompts, most tokens of each) -> their features


def encode_long(encode: Encode, prompts: Sequence[str], limit: int, mode: str = "truncate", inner_ends: bool = False,
                emphasis: bool = False) -> Encoded:
    """Features of prompts in one of `MODES`; no word is lost that the report does not name.

    limit: tokens of the training captions. truncate: cut there. whole: up to LONGEST_PROMPT tokens in one go. segments:
    each sentence by itself, cut at `limit`, their features concatenated. inner_ends: keep the end token of every
    segment, not only of the last. emphasis: do not split inside the brackets of weights. Raises ValueError.
    """
    check_mode(mode, inner_ends)
    if mode == "truncate":
        return encode(list(prompts), limit)
    if mode == "whole":
        found = encode(list(prompts), LONGEST_PROMPT)
        return Encoded(found.context, found.mask, [beyond(report, limit) for report in found.reports], found.encoder)
    rows = []
    for prompt in prompts:
        parts = split_segments(prompt, emphasis)
        rows.append(joined([encode([part], limit) for part in parts], prompt, inner_ends))
    return join_encoded(rows)


def check_mode(mode: str, inner_ends: bool = False) -> None:
    if mode not in MODES:
        raise ValueError(f"{mode!r} is not a way to encode long prompts; use {', '.join(MODES)}")
    if inner_ends and mode != "segments":
        raise ValueError(f"inner end tokens are those of segments; with {mode!r} there are none to keep")


def beyond(report: PromptReport, limit: int) -> PromptReport:
    """The report of a prompt that was encoded whole: measured by its own length, with a note where it is too long."""
    note = () if report.tokens <= limit else (f"longer than the {limit} tokens of PixArt's training captions",)
    return replace(report, limit=max(limit, report.tokens), notes=report.notes + note)


def joined(segments: Sequence[Encoded], prompt: str, inner_ends: bool) -> Encoded:
    """The segments of one prompt, one row each, concatenated into one row, with the last one's end token only."""
    kept = []
    for number, part in enumerate(segments):
        whole = part.one(0)
        drop = not inner_ends and number < len(segments) - 1
        kept.append(whole.context[:, :-1] if drop else whole.context)
    context = torch.cat(kept, dim=1)
    return Encoded(context, torch.ones(context.shape[:2], dtype=torch.bool),
                   [report_of([part.reports[0] for part in segments], prompt, context.shape[1])], segments[0].encoder)


def report_of(reports: Sequence[PromptReport], prompt: str, tokens: int) -> PromptReport:
    """One report of a prompt in segments, with a note on each where there are several."""
    if len(reports) == 1:
        return reports[0]
    notes = [f"segment {number}, {report.tokens} tokens: {shortened(report.text)}"
             + (f"; cut: {report.cut}" if report.cut else "") for number, report in enumerate(reports, 1)]
    notes += [note for report in reports for note in report.notes]
    lost = sum(report.needed - report.tokens for report in reports)
    return PromptReport(prompt, " ".join(report.text for report in reports), tokens, tokens + lost, tokens,
                        " ".join(report.cut for report in reports if report.cut), tuple(dict.fromkeys(notes)))


def shortened(text: str) -> str:
    return text if len(text) <= SHOWN_OF_SEGMENT else text[:SHOWN_OF_SEGMENT - 4].rstrip() + " ..."
