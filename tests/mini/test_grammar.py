"""Scenes and captions: deterministic, complete, and split without overlap."""
import random
from collections import Counter

import pytest

from pixart.mini.grammar import caption
from pixart.mini.scenes import (
    ATTRIBUTES,
    CELLS,
    COLOURS,
    HELD_OUT_PAIRS,
    SHAPES,
    Scene,
    Thing,
    labels,
    sample_scene,
    split_of,
    stated_facts,
)
from pixart.text.cleaning import clean_caption


@pytest.mark.parametrize("name", ["train", "held-out"])
def test_a_scene_depends_on_its_number_alone(name: str) -> None:
    forward = [sample_scene(index, 3, name) for index in range(50)]
    backward = [sample_scene(index, 3, name) for index in reversed(range(50))]
    assert forward == backward[::-1]
    assert forward != [sample_scene(index, 4, name) for index in range(50)]


def test_splits_do_not_overlap() -> None:
    train = {sample_scene(index, 0, "train") for index in range(3000)}
    held = {sample_scene(index, 5, "held-out") for index in range(1000)}
    assert all(split_of(scene) == "train" for scene in train)
    assert all(split_of(scene) == "held-out" for scene in held)
    assert not train & held


def test_an_eighth_of_the_pairs_is_never_trained() -> None:
    assert len(HELD_OUT_PAIRS) == len(SHAPES) * len(COLOURS) // 8
    shown = {(thing.shape, thing.colour) for index in range(6000) for thing in sample_scene(index, 1).things}
    assert shown == {(s, c) for s in SHAPES for c in COLOURS} - HELD_OUT_PAIRS


def test_about_a_fifth_of_the_scenes_hold_two_things() -> None:
    counts = Counter(len(sample_scene(index, 2).things) for index in range(3000))
    assert 0.14 < counts[2] / 3000 < 0.25


SYNONYMS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge"), "striped": ("stripe",),
            "dotted": ("dot",), "plain": ("",), "centre": ("centre", "center", "middle"),
            "one": ("",), "two": ("",), "left of": ("left of", "right of"),
            "above": ("above", "over", "on top of", "below", "under", "beneath")}


@pytest.mark.parametrize("index", range(60))
def test_captions_say_everything(index: int) -> None:
    scene = sample_scene(index, 7)
    text = caption(scene, random.Random(index))
    for answer in stated_facts(scene).values():
        assert any(word in text for word in SYNONYMS.get(answer, (answer,))), (answer, text)


def test_a_relation_told_backwards_names_the_second_thing_first() -> None:
    things = (Thing("circle", "red", "medium", "plain"), Thing("star", "blue", "medium", "plain"))
    scene = Scene("grey", things, relation="left of")
    for index in range(40):
        text = caption(scene, random.Random(index))
        assert (text.index("circle") < text.index("star")) == ("left of" in text)


def test_captions_vary() -> None:
    scene = sample_scene(0, 0)
    assert len({caption(scene, random.Random(index)) for index in range(200)}) > 60


@pytest.mark.parametrize("name", ["train", "held-out"])
def test_crowded_scenes_hold_three_to_five_things_in_cells_of_their_own(name: str) -> None:
    counts = Counter()
    for index in range(300):
        scene = sample_scene(index, 1, name, crowded=True)
        assert split_of(scene) == name and len(set(scene.cells)) == len(scene.things) == len(scene.cells)
        assert list(scene.cells) == sorted(scene.cells, key=CELLS.index)
        counts[len(scene.things)] += 1
    assert set(counts) == {3, 4, 5} and min(counts.values()) > 60


def test_crowded_captions_are_long_and_name_every_thing() -> None:
    for index in range(200):
        scene = sample_scene(index, 2, crowded=True)
        text = caption(scene, random.Random(index))
        words = text.replace(".", " .").replace(",", " ,").split()
        assert 120 < len(words) < 255 and scene.background in text
        assert clean_caption(text) == text, "cleaning as in training leaves it alone"
        for thing in scene.things:
            assert text.count(thing.shape) >= sum(other.shape == thing.shape for other in scene.things)
            assert thing.colour in text


def test_the_ordinary_held_out_sentences_are_those_of_earlier_versions() -> None:
    """Figures measured on them stay comparable."""
    earlier = ["a drawing of a tiny pink triangle on the right on grey",
               "a green star on top of a green cross against a black background"]
    texts = [caption(sample_scene(i, 7, "held-out"), random.Random(f"caption 7 held-out {i}")) for i in (0, 3)]
    assert texts == earlier


def test_labels_and_facts_agree() -> None:
    for index in range(200):
        scene = sample_scene(index, 0, "held-out", crowded=index % 2 == 1)
        known = stated_facts(scene)
        for (name, answers), label in zip(ATTRIBUTES.items(), labels(scene)):
            assert (label == -100) == (name not in known)
            assert label == -100 or answers[label] == known[name]


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="train or held-out"):
        sample_scene(0, 0, "test")
