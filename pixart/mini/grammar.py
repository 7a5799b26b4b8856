"""The world of PixArt-mini in words: what a scene can hold, and the sentences that describe it."""
import random
import zlib
from dataclasses import astuple, dataclass

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")
POSITIONS = ("centre", "left", "right", "top", "bottom")
RELATIONS = ("left of", "above")
BACKGROUNDS = ("black", "white", "grey", "sand", "navy")

# Never shown in training: every shape once, every colour at most once (an eighth of the 48 pairs).
HELD_OUT_PAIRS = frozenset({("circle", "purple"), ("square", "cyan"), ("triangle", "pink"),
                            ("star", "green"), ("cross", "orange"), ("ring", "red")})
TWO_OBJECTS = 0.2              # share of scenes that hold two objects

_SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
_PLACE_WORDS = {
    "centre": ("in the centre", "in the middle", "in the center"),
    "left": ("on the left", "on the left side", "at the left"),
    "right": ("on the right", "on the right side", "at the right"),
    "top": ("at the top", "on the top", "near the top"),
    "bottom": ("at the bottom", "on the bottom", "near the bottom"),
}
_RELATION_WORDS = {
    "left of": (("to the left of", "left of"), ("to the right of", "right of")),
    "above": (("above", "over", "on top of"), ("below", "under", "beneath")),
}
_TEXTURE_PHRASES = {"striped": "with stripes", "dotted": "with dots"}
_OPENINGS = ("", "", "", "a picture of ", "an image of ", "a drawing of ", "there is ")
_BACKDROPS = ("on a {} background", "on {}", "against a {} background", "in front of a {} background")


@dataclass(frozen=True)
class Thing:
    """One object. In scenes with two, size and texture are always "medium" and "plain" and stay unsaid."""

    shape: str
    colour: str
    size: str
    texture: str


@dataclass(frozen=True)
class Scene:
    """What a picture shows. One thing has a position, two have a relation: the first is left of or above the second."""

    background: str
    things: tuple[Thing, ...]
    position: str = ""
    relation: str = ""


def split(scene: Scene) -> str:
    """"train" or "held-out": held out are six shape-colour pairs and, by hash, 5 % of all other combinations."""
    if any((thing.shape, thing.colour) in HELD_OUT_PAIRS for thing in scene.things):
        return "held-out"
    return "held-out" if zlib.crc32(repr(astuple(scene)).encode()) % 20 == 0 else "train"


def sample(index: int, seed: int, split: str = "train") -> Scene:
    """The scene with this number in the endless row that `seed` and `split` ("train" or "held-out") name."""
    if split not in ("train", "held-out"):
        raise ValueError(f"unknown split {split!r}; use train or held-out")
    rng = random.Random(f"scene {seed} {split} {index}")
    while True:
        scene = _draw_lots(rng)
        if _split_of(scene) == split:
            return scene


_split_of = split              # `sample` has an argument of the same name


def _draw_lots(rng: random.Random) -> Scene:
    background = rng.choice(BACKGROUNDS)
    if rng.random() >= TWO_OBJECTS:
        thing = Thing(rng.choice(SHAPES), rng.choice(COLOURS), rng.choice(SIZES), rng.choice(TEXTURES))
        return Scene(background, (thing,), position=rng.choice(POSITIONS))
    first, second = rng.sample([(shape, colour) for shape in SHAPES for colour in COLOURS], 2)
    things = tuple(Thing(shape, colour, "medium", "plain") for shape, colour in (first, second))
    return Scene(background, things, relation=rng.choice(RELATIONS))


def caption(scene: Scene, rng: random.Random) -> str:
    """One of several sentences that say everything `scene` holds; only a plain texture may stay unsaid."""
    body = _one(scene, rng) if len(scene.things) == 1 else _two(scene, rng)
    backdrop = rng.choice(_BACKDROPS).format(scene.background)
    if rng.random() < 0.15:
        return f"a {scene.background} background with {body}"
    return f"{rng.choice(_OPENINGS)}{body} {backdrop}{rng.choice(('', '', '.'))}"


def _one(scene: Scene, rng: random.Random) -> str:
    thing = scene.things[0]
    words = [rng.choice(_SIZE_WORDS[thing.size])]
    ending = ""
    if thing.texture == "plain":
        words += ["plain"] if rng.random() < 0.4 else []
    elif rng.random() < 0.3:
        ending = f" {_TEXTURE_PHRASES[thing.texture]}"
    else:
        words.append(thing.texture)
    name = " ".join([*words, thing.colour, thing.shape])
    return f"{_article(name)} {name}{ending} {rng.choice(_PLACE_WORDS[scene.position])}"


def _two(scene: Scene, rng: random.Random) -> str:
    names = [f"{thing.colour} {thing.shape}" for thing in scene.things]
    first, second = (f"{_article(name)} {name}" for name in names)
    forward, backward = _RELATION_WORDS[scene.relation]
    if rng.random() < 0.5:
        return f"{first} {rng.choice(forward)} {second}"
    return f"{second} {rng.choice(backward)} {first}"


def _article(name: str) -> str:
    return "an" if name[0] in "aeiou" else "a"


def vocabulary() -> list[str]:
    """Every word that captions use, sorted: a few thousand captions cover the grammar."""
    words: set[str] = set()
    for index in range(4000):
        text = caption(sample(index, 0), random.Random(index))
        words.update(text.replace(".", " .").split())
    return sorted(words)


# What can be asked of a scene, and the possible answers. "second" is the right or lower of two things.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "background": BACKGROUNDS, "count": ("one", "two"), "shape": SHAPES, "colour": COLOURS, "size": SIZES,
    "texture": TEXTURES, "position": POSITIONS, "second shape": SHAPES, "second colour": COLOURS, "relation": RELATIONS,
}


def facts(scene: Scene) -> dict[str, str]:
    """The answers that a caption of `scene` states: a subset of `ATTRIBUTES`."""
    first = scene.things[0]
    known = {"background": scene.background, "shape": first.shape, "colour": first.colour}
    if len(scene.things) == 1:
        return known | {"count": "one", "size": first.size, "texture": first.texture, "position": scene.position}
    second = scene.things[1]
    return known | {"count": "two", "second shape": second.shape, "second colour": second.colour,
                    "relation": scene.relation}


def labels(scene: Scene) -> list[int]:
    """`facts` as one class number per attribute in the order of `ATTRIBUTES`; -100 where a caption states nothing."""
    known = facts(scene)
    return [answers.index(known[name]) if name in known else -100 for name, answers in ATTRIBUTES.items()]
