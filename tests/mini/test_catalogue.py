"""Scenes and captions as numbers: the same however they are made, and what the tokenizer would make of them."""
import random

import pytest
import torch

from pixart.mini.catalogue import SceneWish, build_catalogue, numbers
from pixart.mini.grammar import caption
from pixart.mini.scenes import COLOURS, HELD_OUT_PAIRS, SHAPES, sample_scene
from pixart.mini.text_encoder import build_tokenizer


@pytest.fixture(scope="module")
def words() -> dict[str, int]:
    return build_tokenizer().get_vocab()


def test_numbers_are_those_of_the_tokenizer(words: dict[str, int]) -> None:
    tokenizer = build_tokenizer()
    for index in range(200):
        text = caption(sample_scene(index, 3, crowded=index % 3 == 0), random.Random(index))
        assert numbers(text, words) == tokenizer(text).input_ids
    assert numbers("a dinosaur", words) == tokenizer("a dinosaur").input_ids


def test_the_number_of_processes_changes_nothing(words: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixart.mini.catalogue._PART", 20)
    alone = build_catalogue(SceneWish(4, crowded=True), 50, words, processes=1)
    monkeypatch.undo()
    whole = build_catalogue(SceneWish(4, crowded=True), 50, words)
    assert len(alone) == len(whole) == 50 and torch.equal(alone.codes[:20], whole.codes[:20])


def test_two_processes_draw_what_one_draws(words: dict[str, int]) -> None:
    one, two = (build_catalogue(SceneWish(4), 6000, words, processes=count) for count in (1, 2))
    for name, value in vars(one).items():
        assert torch.equal(value, getattr(two, name)), name


def test_wishes_are_granted(words: dict[str, int]) -> None:
    pairs = {(SHAPES.index(shape), COLOURS.index(colour)) for shape, colour in HELD_OUT_PAIRS}

    def shown(wish: SceneWish) -> tuple[set, torch.Tensor, torch.Tensor]:
        made = build_catalogue(wish, 800, words)
        things = made.codes[:, 4:].view(800, -1, 4)
        return {tuple(thing[:2].tolist()) for thing in things[things[..., 0] >= 0]}, made.codes[:, 1], made.tokens

    seen, counts, tokens = shown(SceneWish(1, two=0.5))
    assert not seen & pairs and 0.42 < (counts == 2).float().mean() < 0.58 and not (tokens == 2).any()
    seen, _, _ = shown(SceneWish(1, held_out=0.5))
    assert pairs <= seen
    _, counts, tokens = shown(SceneWish(1, crowded=True, unknown=0.5))
    assert set(counts.tolist()) == {3, 4, 5} and 0.4 < (tokens == 2).any(1).float().mean() < 0.6
