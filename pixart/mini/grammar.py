"""The sentences that describe the scenes of PixArt-mini."""
import random

from .scenes import Scene, sample_scene

SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
PLACE_WORDS = {
    "centre": ("in the centre", "in the middle", "in the center"),
    "left": ("on the left", "on the left side", "at the left"),
    "right": ("on the right", "on the right side", "at the right"),
    "top": ("at the top", "on the top", "near the top"),
    "bottom": ("at the bottom", "on the bottom", "near the bottom"),
}
RELATION_WORDS = {
    "left of": (("to the left of", "left of"), ("to the right of", "right of")),
    "above": (("above", "over", "on top of"), ("below", "under", "beneath")),
}
_TEXTURE_PHRASES = {"striped": "with stripes", "dotted": "with dots"}
_OPENINGS = ("", "", "", "a picture of ", "an image of ", "a drawing of ", "there is ")
_BACKDROPS = ("on a {} background", "on {}", "against a {} background", "in front of a {} background")
CELL_WORDS = {
    "upper left": ("in the upper left corner", "at the top on the left", "in the corner at the top left"),
    "upper middle": ("at the top in the middle", "in the middle of the upper row", "at the top between the corners"),
    "upper right": ("in the upper right corner", "at the top on the right", "in the corner at the top right"),
    "middle left": ("on the left at half height", "in the middle row on the left", "at the left edge in the middle"),
    "very middle": ("in the very middle of it all", "in the exact centre", "in the middle row in the middle"),
    "middle right": ("on the right at half height", "in the middle row on the right",
                     "at the right edge in the middle"),
    "lower left": ("in the lower left corner", "at the bottom on the left", "in the corner at the bottom left"),
    "lower middle": ("at the bottom in the middle", "in the middle of the lower row",
                     "at the bottom between the corners"),
    "lower right": ("in the lower right corner", "at the bottom on the right", "in the corner at the bottom right"),
}
NUMBER_WORDS = ("one", "two", "three", "four", "five")
_ORDER = ("first", "second", "third", "fourth", "fifth")
# Sentences that say nothing new, so that the captions of crowded scenes are as long as people's long prompts.
_ASIDES = ("all of its edges are clean and sharp, and nothing covers any part of it.",
           "it is neither very small nor very large, and it has no stripes and no dots.",
           "it is plain all over, without any pattern, and it does not touch any of the other things.",
           "there is enough empty room around it, so that it can be seen as a whole.")
_ENDINGS = ("there is nothing else to be seen in this picture.", "everything else in the picture is empty.",
            "apart from these things the picture is empty, and nothing is written on it.")


def caption(scene: Scene, rng: random.Random) -> str:
    """One of several texts that say everything `scene` holds; only a plain texture may stay unsaid.

    A sentence for one or two things; for crowded scenes a paragraph of 132 to 254 words and punctuation marks.
    """
    if scene.crowded:
        return _paragraph(scene, rng)
    body = _one(scene, rng) if len(scene.things) == 1 else _two(scene, rng)
    backdrop = rng.choice(_BACKDROPS).format(scene.background)
    if rng.random() < 0.15:
        return f"a {scene.background} background with {body}"
    return f"{rng.choice(_OPENINGS)}{body} {backdrop}{rng.choice(('', '', '.'))}"


def _one(scene: Scene, rng: random.Random) -> str:
    thing = scene.things[0]
    words = [rng.choice(SIZE_WORDS[thing.size])]
    ending = ""
    if thing.texture == "plain":
        words += ["plain"] if rng.random() < 0.4 else []
    elif rng.random() < 0.3:
        ending = f" {_TEXTURE_PHRASES[thing.texture]}"
    else:
        words.append(thing.texture)
    name = " ".join([*words, thing.colour, thing.shape])
    return f"{_article(name)} {name}{ending} {rng.choice(PLACE_WORDS[scene.position])}"


def _two(scene: Scene, rng: random.Random) -> str:
    names = [f"{thing.colour} {thing.shape}" for thing in scene.things]
    first, second = (f"{_article(name)} {name}" for name in names)
    forward, backward = RELATION_WORDS[scene.relation]
    if rng.random() < 0.5:
        return f"{first} {rng.choice(forward)} {second}"
    return f"{second} {rng.choice(backward)} {first}"


def _paragraph(scene: Scene, rng: random.Random) -> str:
    """What there is, thing by thing in any order, with sentences in between that say nothing new."""
    number = NUMBER_WORDS[len(scene.things) - 1]
    sentences = [f"{rng.choice(('this is a picture of', 'a drawing of', 'there are'))} {number} different things "
                 f"{rng.choice(_BACKDROPS).format(scene.background)}."]
    for place, index in zip(_ORDER, rng.sample(range(len(scene.things)), len(scene.things))):
        thing, where = scene.things[index], rng.choice(CELL_WORDS[scene.cells[index]])
        name = f"{_article(thing.colour)} {thing.colour} {thing.shape}"
        sentences.append(rng.choice((
            f"the {place} of the things is {name}, which you can find {where}.",
            f"{where} of the picture there is {name}, the {place} of the {number} things.",
            f"the {place} thing lies {where}. it is a {thing.shape}, and the colour of this {thing.shape} is "
            f"{thing.colour}.")))
        sentences.append(rng.choice(_ASIDES))
    sentences.append(rng.choice(_ENDINGS))
    return " ".join(sentences)


def _article(name: str) -> str:
    return "an" if name[0] in "aeiou" else "a"


def vocabulary() -> list[str]:
    """Every word that captions use, sorted: a few thousand captions cover the grammar."""
    words: set[str] = set()
    for index in range(5000):
        text = caption(sample_scene(index, 0, crowded=index % 5 == 4), random.Random(index))
        words.update(text.replace(".", " .").replace(",", " ,").split())
    return sorted(words)
