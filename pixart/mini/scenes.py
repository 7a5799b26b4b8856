"""The world of PixArt-mini: what a scene can hold, how scenes are drawn by lot, and what can be asked of them."""
import random
import zlib
from dataclasses import astuple, dataclass

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")
PLACES = ("centre", "left", "right", "top", "bottom")
RELATIONS = ("left of", "above")
BACKGROUNDS = ("black", "white", "grey", "sand", "navy")
COUNTS = ("one", "two", "three", "four", "five")
# Places in a scene of three things and more: a grid of 3 x 3, row by row.
CELLS = ("upper left", "upper middle", "upper right", "middle left", "very middle", "middle right",
         "lower left", "lower middle", "lower right")

# Never shown in training: every shape once, every colour at most once (an eighth of the 48 pairs).
HELD_OUT_PAIRS = frozenset({("circle", "purple"), ("square", "cyan"), ("triangle", "pink"),
                            ("star", "green"), ("cross", "orange"), ("ring", "red")})
TWO_OBJECTS = 0.2              # share of ordinary scenes that hold two objects


@dataclass(frozen=True)
class Thing:
    """One object. In scenes with more than one, size and texture are always "medium" and "plain" and stay unsaid."""

    shape: str
    colour: str
    size: str
    texture: str


@dataclass(frozen=True)
class Scene:
    """What an image shows.

    One thing has a position; two have a relation: the first is left of or above the second; three to five have a cell
    each, in the order of `CELLS`. Scenes of more than two things are called crowded.
    """

    background: str
    things: tuple[Thing, ...]
    position: str = ""
    relation: str = ""
    cells: tuple[str, ...] = ()

    @property
    def crowded(self) -> bool:
        return len(self.things) > 2


def split_of(scene: Scene) -> str:
    """"train" or "held-out": held out are six shape-colour pairs and, by hash, 5 % of all other combinations."""
    if any((thing.shape, thing.colour) in HELD_OUT_PAIRS for thing in scene.things):
        return "held-out"
    known = astuple(scene) if scene.cells else astuple(scene)[:-1]
    return "held-out" if zlib.crc32(repr(known).encode()) % 20 == 0 else "train"


def sample_scene(index: int, seed: int, split: str = "train", crowded: bool = False) -> Scene:
    """The scene with this number in the endless row that `seed`, `split` ("train" or "held-out") and `crowded` name."""
    if split not in ("train", "held-out"):
        raise ValueError(f"unknown split {split!r}; use train or held-out")
    rng = random.Random(f"{'crowd' if crowded else 'scene'} {seed} {split} {index}")
    return draw_lots(rng, split, crowded)


def draw_lots(rng: random.Random, split: str = "train", crowded: bool = False, two: float = TWO_OBJECTS) -> Scene:
    """A scene of the split; `two` is the share of ordinary scenes with two things."""
    while True:
        scene = _crowd(rng, split) if crowded else _ordinary(rng, two)
        if split_of(scene) == split:
            return scene


def _ordinary(rng: random.Random, two: float) -> Scene:
    background = rng.choice(BACKGROUNDS)
    if rng.random() >= two:
        thing = Thing(rng.choice(SHAPES), rng.choice(COLOURS), rng.choice(SIZES), rng.choice(TEXTURES))
        return Scene(background, (thing,), position=rng.choice(PLACES))
    things = _medium(rng.sample([(shape, colour) for shape in SHAPES for colour in COLOURS], 2))
    return Scene(background, things, relation=rng.choice(RELATIONS))


def _crowd(rng: random.Random, split: str) -> Scene:
    """Three to five things; in training only pairs that may be shown, or almost none of five would be allowed."""
    pairs = [(shape, colour) for shape in SHAPES for colour in COLOURS
             if split == "held-out" or (shape, colour) not in HELD_OUT_PAIRS]
    background, count = rng.choice(BACKGROUNDS), rng.randint(3, 5)
    cells = sorted(rng.sample(range(len(CELLS)), count))
    return Scene(background, _medium(rng.sample(pairs, count)), cells=tuple(CELLS[cell] for cell in cells))


def _medium(pairs: list[tuple[str, str]]) -> tuple[Thing, ...]:
    return tuple(Thing(shape, colour, "medium", "plain") for shape, colour in pairs)


# What can be asked of a scene, and the possible answers. "second" is the right or lower of two things.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "background": BACKGROUNDS, "count": COUNTS, "shape": SHAPES, "colour": COLOURS, "size": SIZES,
    "texture": TEXTURES, "position": PLACES, "second shape": SHAPES, "second colour": COLOURS, "relation": RELATIONS,
    **{f"{cell} {what}": answers for cell in CELLS for what, answers in (("shape", SHAPES), ("colour", COLOURS))},
}


def stated_facts(scene: Scene) -> dict[str, str]:
    """The answers that a caption of `scene` states: a subset of `ATTRIBUTES`."""
    known = {"background": scene.background, "count": COUNTS[len(scene.things) - 1]}
    if scene.crowded:
        for cell, thing in zip(scene.cells, scene.things):
            known |= {f"{cell} shape": thing.shape, f"{cell} colour": thing.colour}
        return known
    first = scene.things[0]
    known |= {"shape": first.shape, "colour": first.colour}
    if len(scene.things) == 1:
        return known | {"size": first.size, "texture": first.texture, "position": scene.position}
    second = scene.things[1]
    return known | {"second shape": second.shape, "second colour": second.colour, "relation": scene.relation}


def labels(scene: Scene) -> list[int]:
    """`stated_facts` as one class number per attribute in the order of `ATTRIBUTES`; -100 where nothing is stated."""
    known = stated_facts(scene)
    return [answers.index(known[name]) if name in known else -100 for name, answers in ATTRIBUTES.items()]
