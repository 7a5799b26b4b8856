"""Endless training data: whatever a batch holds follows from its generator, and is what the parts would make."""
import pytest
import torch

from pixart.control.edges import canny
from pixart.mini.autoencoder import AutoencoderConfig, MiniAutoencoder
from pixart.mini.catalogue import SceneWish, build_catalogue
from pixart.mini.images import BUCKETS, CANNY
from pixart.mini.scenery import Scenery
from pixart.mini.scenes import ATTRIBUTES
from pixart.mini.stream import EndlessData
from pixart.mini.text_encoder import MINI_TOKENS, WIDTH, build_encoder, build_tokenizer
from pixart.train.draws import generator_for


@pytest.fixture(scope="module")
def data() -> EndlessData:
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    words = tokenizer.get_vocab()
    scenery = Scenery(build_catalogue(SceneWish(0), 60, words), build_catalogue(SceneWish(0, crowded=True), 20, words),
                      0.3)
    return EndlessData(scenery, MiniAutoencoder(AutoencoderConfig((4, 4, 4, 4))), build_encoder(len(tokenizer)),
                       MINI_TOKENS, hints=True)


def test_a_step_is_made_again_to_the_bit_and_no_two_alike(data: EndlessData) -> None:
    first, again, other = (data.batch(generator_for(0, step), 4) for step in (5, 5, 6))
    assert first.noise is again.noise is None        # rendered images have no noise that a teacher began with
    for name in vars(first).keys() - {"noise"}:
        assert torch.equal(getattr(first, name), getattr(again, name)), name
    assert first.latents.shape != other.latents.shape or not torch.equal(first.latents, other.latents)


def test_latents_hints_and_features_are_those_of_the_images(data: EndlessData) -> None:
    batch, rendered = data.batch(generator_for(0, 3), 4), data.scenery.render(generator_for(0, 3), 4)
    torch.testing.assert_close(batch.latents, data.vae.encode(rendered.images))
    maps = canny(rendered.images, CANNY["low"], CANNY["high"])
    torch.testing.assert_close(batch.hint, data.vae.encode(maps.expand(-1, 3, -1, -1)))
    height, width = rendered.images.shape[-2:]
    assert batch.size.tolist() == [[height, width]] * 4 and batch.aspect.tolist() == pytest.approx([height / width] * 4)
    assert batch.context.shape == (4, rendered.tokens.shape[1], WIDTH) and not batch.context[~batch.mask].any()


def test_reused_images_are_the_same_for_some_steps_and_then_others(data: EndlessData) -> None:
    data.reuse = 4
    found = [data.batch(generator_for(0, step), 2) for step in range(8)]
    again = data.batch(generator_for(0, 1), 2)
    data.reuse = 1
    changes = sum(a.latents is not b.latents for a, b in zip(found, found[1:]))
    assert changes in (1, 2) and torch.equal(again.latents, found[1].latents)


def test_parts_of_a_step_hold_other_images_also_where_these_are_used_again(data: EndlessData) -> None:
    whole = data.batch(generator_for(0, 1), 4)
    data.reuse = 4
    first, second = (data.batch(generator_for(0, 5 + step, slice(at, at + 2), 4), 2) for step, at in ((0, 0), (1, 2)))
    data.reuse = 1
    torch.testing.assert_close(torch.cat([first.latents, second.latents]), whole.latents)


def test_every_size_and_both_kinds_come_up(data: EndlessData) -> None:
    rendered = [data.scenery.render(generator_for(1, step), 1) for step in range(60)]
    assert {tuple(given.images.shape[-2:]) for given in rendered} == set(BUCKETS)
    long = sum(given.tokens.shape[1] > 100 for given in rendered) / 60
    assert 0.1 < long < 0.5


def test_mixed_batches_are_half_crowded(data: EndlessData) -> None:
    images, answers = data.scenery.render_mixed(generator_for(0, 2), 8)
    count = answers[:, list(ATTRIBUTES).index("count")]
    assert len(images) == 8 and (count >= 2).tolist() == [False] * 4 + [True] * 4


def test_remembered_features_are_those_of_the_encoder(data: EndlessData) -> None:
    fresh = data.batch(generator_for(0, 4), 4)
    data.remember()
    torch.testing.assert_close(data.batch(generator_for(0, 4), 4).context, fresh.context, rtol=0, atol=0.02)
    data.remembered.clear()


def test_answers_say_what_the_catalogue_says(data: EndlessData) -> None:
    rendered = data.scenery.render(generator_for(0, 0), 8)
    assert rendered.answers.min() == -100 and (rendered.answers >= 0).sum(1).min() >= 6


def test_without_caption_there_is_the_one_token_of_the_empty_prompt(data: EndlessData) -> None:
    batch = data.batch(generator_for(0, 1), 3)
    silent = data.without_caption(batch, torch.tensor([True, False, True]))
    assert silent.mask.sum(1).tolist() == [1, batch.mask[1].sum().item(), 1]
    torch.testing.assert_close(silent.context[0, :1], data.null_context)
    assert torch.equal(silent.context[1], batch.context[1])
