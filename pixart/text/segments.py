"""Long prompts in segments: sentences that are encoded one by one, and their features put behind each other.

LongAlign (Liu et al. 2024, section 3) does so for CLIP, which reads 77 tokens. T5 reads longer prompts, yet PixArt saw
at most 120 tokens in training (300 in Sigma's), and attention inside of T5 spreads over all that is said.
"""
import re

# As in the published code, which looks for `"!`, with a quotation mark, where a bare `!` seems to be meant; both here.
_END = re.compile(r'(?<=[.?!;])["\')\]]*\s+')


def split_segments(text: str) -> list[str]:
    """The sentences of a text, each with its own mark at the end; never a word less. One empty segment of no text.

    Cut is after . ? ! or ; and blanks, so numbers (1.5) and names of files stay whole.
    """
    return [segment for segment in (part.strip() for part in _cut(text)) if segment] or [""]


def _cut(text: str) -> list[str]:
    ends = [match.end() for match in _END.finditer(text)]
    return [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)])]
