"""The sentences and their noise: fixed, held out, the same whatever the batch."""
import pytest
import torch

from pixart.mini.images import BUCKETS
from pixart.mini.measure.prompts import Prompts
from pixart.mini.prepare import image_of


def seeds(prompts, batch):
    return {i: group.seed + k for group in prompts.groups(batch) for k, i in enumerate(group.members)}


def test_sentences_are_fixed_and_held_out():
    from pixart.mini.scenes import split_of
    prompts, again = (Prompts.held_out(30, 7) for _ in range(2))
    assert prompts == again and all(split_of(scene) == "held-out" for scene in prompts.scenes)
    assert prompts.digest == again.digest != Prompts.held_out(30, 8).digest


def test_groups_hold_every_sentence_once_in_its_size():
    groups = list(Prompts.held_out(31, 7).groups(4))
    assert sorted(i for group in groups for i in group.members) == list(range(31))
    assert all((group.height, group.width) == BUCKETS[i % len(BUCKETS)] for group in groups for i in group.members)
    assert max(len(group.members) for group in groups) == 4


def test_the_seed_of_a_sentence_depends_on_neither_batch_nor_count():
    prompts = Prompts.held_out(60, 7)
    whole = seeds(prompts, 100)
    assert whole == seeds(prompts, 3) and len(set(whole.values())) == 60
    few = seeds(prompts.first(13), 2)
    assert few == {i: whole[i] for i in range(13)}


def test_another_run_has_other_noise():
    from dataclasses import replace
    prompts = Prompts.held_out(20, 7)
    first, second = set(seeds(prompts, 9).values()), set(seeds(replace(prompts, run=1), 9).values())
    assert not first & second


def test_real_images_are_those_of_the_prepared_data():
    real = Prompts.held_out(12, 7).real()
    for i in range(12):
        want = image_of(i, 7, "held-out", BUCKETS[i % len(BUCKETS)])
        assert torch.equal((real[i] * 255).round().byte(), want)


def test_no_sentences_are_refused():
    with pytest.raises(ValueError, match="0 prompts"):
        Prompts.held_out(0, 7)


def test_crowded_sentences_have_scenes_and_images_of_their_own() -> None:
    prompts = Prompts.held_out(20, 7, crowded=True)
    assert {len(scene.things) for scene in prompts.scenes} == {3, 4, 5}
    assert len(prompts.real()) == 20 and prompts.digest != Prompts.held_out(20, 7).digest
