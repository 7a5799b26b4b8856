"""Long prompts in segments: the sentences of a text.

LongAlign (Liu et al. 2024, section 3) encodes them one by one and concatenates their features, for CLIP, which
reads 77 tokens. T5 reads longer prompts, yet PixArt saw at most 120 tokens in training (Sigma 300).
"""
import re

# The published code splits at `.`, `?` and at `"!` and `;"` with quotation marks, where bare ones seem to be meant.
_END = re.compile(r'(?<=[.?!;])["\')\]]*\s+')
_BRACKET = re.compile(r"(?<!\\)[()]")


def split_segments(text: str, emphasis: bool = False) -> list[str]:
    """The sentences of a text, each with its own mark at the end, no word lost; one empty segment for no text.

    It cuts after . ? ! or ; and blanks, so numbers (1.5) and names of files stay whole. emphasis: not inside brackets,
    which give weights to what they hold.
    """
    pieces = [piece for piece in _cut(text) if piece.strip()]
    if emphasis:
        pieces = _whole_brackets(pieces)
    return [piece.strip() for piece in pieces] or [""]


def _cut(text: str) -> list[str]:
    ends = [match.end() for match in _END.finditer(text)]
    return [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)])]


def _whole_brackets(pieces: list[str]) -> list[str]:
    """Pieces joined until every bracket that opens in one is closed in it."""
    joined: list[str] = []
    depth = 0
    for piece in pieces:
        if depth > 0:
            joined[-1] += piece
        else:
            joined.append(piece)
        for bracket in _BRACKET.findall(piece):
            depth = max(0, depth + (1 if bracket == "(" else -1))
    return joined
