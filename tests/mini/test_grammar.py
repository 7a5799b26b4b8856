"""Scenes and captions: deterministic, complete, and split without overlap."""
import random
from collections import Counter

import pytest

from pixart.mini.grammar import (
    ATTRIBUTES,
    COLOURS,
    HELD_OUT_PAIRS,
    SHAPES,
    Scene,
    Thing,
    caption,
    facts,
    labels,
    sample,
    split,
)


@pytest.mark.parametrize("name", ["train", "held-out"])
def test_a_scene_depends_on_its_number_alone(name: str) -> None:
    forward = [sample(index, 3, name) for index in range(50)]
    backward = [sample(index, 3, name) for index in reversed(range(50))]
    assert forward == backward[::-1]
    assert forward != [sample(index, 4, name) for index in range(50)]


def test_splits_do_not_overlap() -> None:
    train = {sample(index, 0, "train") for index in range(3000)}
    held = {sample(index, 5, "held-out") for index in range(1000)}
    assert all(split(scene) == "train" for scene in train)
    assert all(split(scene) == "held-out" for scene in held)
    assert not train & held


def test_an_eighth_of_the_pairs_is_never_trained() -> None:
    assert len(HELD_OUT_PAIRS) == len(SHAPES) * len(COLOURS) // 8
    shown = {(thing.shape, thing.colour) for index in range(6000) for thing in sample(index, 1).things}
    assert shown == {(s, c) for s in SHAPES for c in COLOURS} - HELD_OUT_PAIRS


def test_about_a_fifth_of_the_scenes_hold_two_things() -> None:
    counts = Counter(len(sample(index, 2).things) for index in range(3000))
    assert 0.14 < counts[2] / 3000 < 0.25


SYNONYMS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge"), "striped": ("stripe",),
            "dotted": ("dot",), "plain": ("",), "centre": ("centre", "center", "middle"),
            "one": ("",), "two": ("",), "left of": ("left of", "right of"),
            "above": ("above", "over", "on top of", "below", "under", "beneath")}


@pytest.mark.parametrize("index", range(60))
def test_captions_say_everything(index: int) -> None:
    scene = sample(index, 7)
    text = caption(scene, random.Random(index))
    for answer in facts(scene).values():
        assert any(word in text for word in SYNONYMS.get(answer, (answer,))), (answer, text)


def test_a_relation_told_backwards_names_the_second_thing_first() -> None:
    things = (Thing("circle", "red", "medium", "plain"), Thing("star", "blue", "medium", "plain"))
    scene = Scene("grey", things, relation="left of")
    for index in range(40):
        text = caption(scene, random.Random(index))
        assert (text.index("circle") < text.index("star")) == ("left of" in text)


def test_captions_vary() -> None:
    scene = sample(0, 0)
    assert len({caption(scene, random.Random(index)) for index in range(200)}) > 60


def test_labels_and_facts_agree() -> None:
    for index in range(100):
        scene = sample(index, 0, "held-out")
        known = facts(scene)
        for (name, answers), label in zip(ATTRIBUTES.items(), labels(scene)):
            assert (label == -100) == (name not in known)
            assert label == -100 or answers[label] == known[name]


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="train or held-out"):
        sample(0, 0, "test")
