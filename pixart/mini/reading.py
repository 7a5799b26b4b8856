"""Reads sentences of the grammar back: what a caption of PixArt-mini states."""
import re
from collections.abc import Mapping, Sequence

from .grammar import CELL_WORDS, NUMBER_WORDS, PLACE_WORDS, RELATION_WORDS, SIZE_WORDS
from .scenes import ATTRIBUTES, BACKGROUNDS, COLOURS, COUNTS, SHAPES

_THING = re.compile(rf"\b(?P<colour>{'|'.join(COLOURS)}) (?P<shape>{'|'.join(SHAPES)})\b")
_APART = re.compile(rf"it is an? (?P<shape>{'|'.join(SHAPES)}), and the colour of this (?:{'|'.join(SHAPES)}) is "
                    rf"(?P<colour>{'|'.join(COLOURS)})\b")

_TEXTURES = {"striped": "striped|stripes", "dotted": "dotted|dots"}


def answers_of(text: str) -> list[int]:
    """One number an attribute in the order of `ATTRIBUTES`, -100 where the sentence states nothing; as `labels`.

    Raises ValueError for a text that no scene of PixArt-mini has as its caption.
    """
    known = facts_of(" ".join(text.lower().split()))
    return [answers.index(known[name]) if name in known else -100 for name, answers in ATTRIBUTES.items()]


def facts_of(text: str) -> dict[str, str]:
    """What a caption in small letters states, as `scenes.stated_facts`."""
    if (crowd := _crowd(text)) is not None:
        return {"background": _only(BACKGROUNDS, text), **crowd}
    things = [(found["shape"], found["colour"]) for found in _THING.finditer(text)]
    if not 1 <= len(things) <= 2:
        raise ValueError(f"PixArt-mini's judge cannot read this sentence, which names {len(things)} things such as "
                         "\"red circle\"; write for example \"a large red circle on the left on a white background\": "
                         f"{text[:80]!r}")
    known = {"background": _only(BACKGROUNDS, text), "count": COUNTS[len(things) - 1]}
    if len(things) == 1:
        texture = next((kind for kind, words in _TEXTURES.items() if re.search(rf"\b({words})\b", text)), "plain")
        return known | {"shape": things[0][0], "colour": things[0][1], "texture": texture,
                        "size": _phrase(SIZE_WORDS, text), "position": _phrase(PLACE_WORDS, text)}
    relation, turned = _relation(text)
    first, second = reversed(things) if turned else things
    return known | {"shape": first[0], "colour": first[1], "second shape": second[0], "second colour": second[1],
                    "relation": relation}


def _crowd(text: str) -> dict[str, str] | None:
    """Count, and shape and colour by place, of a paragraph about three to five things; None for another text."""
    number = re.search(rf"\b({'|'.join(NUMBER_WORDS)}) different things\b", text)
    if number is None:
        return None
    known, counted = {"count": COUNTS[NUMBER_WORDS.index(number[1])]}, 0
    # A thing takes one sentence or two: its place is in the first, "it is a star, and the colour of ..." the second.
    for sentence in re.split(r"(?<=\.) (?!it is an? \w+, and the colour)", text):
        thing = _THING.search(sentence) or _APART.search(sentence)
        if thing is not None:
            cell = _phrase(CELL_WORDS, sentence)
            known |= {f"{cell} shape": thing["shape"], f"{cell} colour": thing["colour"]}
            counted += 1
    if counted != NUMBER_WORDS.index(number[1]) + 1:
        raise ValueError(f"the prompt speaks of {number[1]} things and describes {counted}: {text[:80]!r}")
    return known


def _relation(text: str) -> tuple[str, bool]:
    """Which relation, and whether the first thing of the text is the second of the scene."""
    for relation, (forward, backward) in RELATION_WORDS.items():
        for phrases, turned in ((forward, False), (backward, True)):
            if any(re.search(rf"\b{phrase}\b", text) for phrase in phrases):
                return relation, turned
    raise ValueError(f"the sentence does not say how its two things lie, left of or above each other: {text[:80]!r}")


def _only(words: Sequence[str], text: str) -> str:
    found = [word for word in words if re.search(rf"\b{word}\b", text)]
    if len(found) != 1:
        raise ValueError(f"the sentence must name one background of {', '.join(words)}, and names {len(found)}: "
                         f"{text[:80]!r}")
    return found[0]


def _phrase(phrases: Mapping[str, Sequence[str]], text: str) -> str:
    """The answer whose words the text has; the longest words count, as some are part of others."""
    found = [(len(words), answer) for answer, every in phrases.items() for words in every
             if re.search(rf"\b{words}\b", text)]
    if not found:
        raise ValueError(f"the sentence has none of these words: "
                         f"{', '.join(words[0] for words in phrases.values())}: {text[:80]!r}")
    return max(found)[1]
