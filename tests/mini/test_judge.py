"""The judge reads, is scored by what captions state, and keeps its own accuracy in its file."""
import random
from pathlib import Path

import pytest
import torch

from pixart.mini import SHIPPED
from pixart.mini.catalogue import SceneWish, build_catalogue
from pixart.mini.judge import (
    DESIGNS,
    Judge,
    _loss,
    fresh_batch,
    load_judge,
    measure_judge,
    own_accuracy,
    save_judge,
    train_judge,
    worsen,
)
from pixart.mini.scenery import Scenery
from pixart.mini.scenes import ATTRIBUTES, split_of
from pixart.mini.text_encoder import build_tokenizer


@pytest.fixture(params=DESIGNS)
def judge(request: pytest.FixtureRequest) -> Judge:
    torch.manual_seed(0)
    return Judge(DESIGNS[request.param]).eval()


@pytest.mark.parametrize("size", [(128, 128), (96, 160), (160, 96)])
def test_it_reads_every_bucket(judge: Judge, size: tuple[int, int]) -> None:
    images = torch.rand(3, 3, *size)
    assert judge.features(images).shape == (3, judge.design.features)
    logits = judge(images)
    assert [given.shape for given in logits] == [(3, len(answers)) for answers in ATTRIBUTES.values()]


def test_grey_images_are_refused(judge: Judge) -> None:
    with pytest.raises(ValueError, match=r"\(2, 1, 64, 64\)"):
        judge.features(torch.rand(2, 1, 64, 64))


def test_a_written_judge_reads_the_same(judge: Judge, tmp_path: Path) -> None:
    save_judge(judge, tmp_path / "judge.safetensors", {"all": 0.5})
    again = load_judge(tmp_path / "judge.safetensors")
    images = fresh_batch(0, 4, "file")[1]
    assert again.design == judge.design
    assert torch.allclose(again.features(images), judge.features(images), atol=2e-2)
    assert own_accuracy(tmp_path / "judge.safetensors") == {"all": 0.5}
    assert (tmp_path / "judge.safetensors").stat().st_size < 3_000_000


def test_worse_images_stay_in_range_and_shape() -> None:
    images = fresh_batch(3, 4, "worse")[1]
    for seed in range(6):
        changed = worsen(images, random.Random(seed))
        assert changed.shape == images.shape
        assert changed.min() >= 0 and changed.max() <= 1 and not torch.equal(changed, images)


def test_a_quarter_is_held_out_and_every_third_batch_crowded() -> None:
    batches = [fresh_batch(step, 8, "mix")[0] for step in range(3)]
    assert [[split_of(scene) for scene in scenes] for scenes in batches] == [["held-out", *["train"] * 3] * 2] * 3
    assert [{scene.crowded for scene in scenes} for scenes in batches] == [{False}, {False}, {True}]


def test_the_loss_is_the_mean_over_what_is_stated_however_much_an_image_states() -> None:
    draws = torch.Generator().manual_seed(0)
    logits = tuple(torch.randn(3, len(answers), generator=draws, dtype=torch.float64) for answers in
                   ATTRIBUTES.values())
    wanted = torch.full((3, len(ATTRIBUTES)), -100)
    stated = [(0, 0, 1), (0, 2, 3), (1, 0, 0), (2, 5, 1), (2, 6, 0)]         # image, attribute, answer
    losses = []
    for image, attribute, answer in stated:
        wanted[image, attribute] = answer
        likely = logits[attribute][image].log_softmax(0)
        losses.append(-(0.99 * likely[answer] + 0.01 * likely.mean()))
    assert _loss(logits, wanted).item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_maps_shrink_to_a_sixteenth(judge: Judge) -> None:
    maps = judge.maps(torch.rand(2, 3, 96, 160))
    assert [tuple(given.shape[2:]) for given in maps[:4]] == [(48, 80), (24, 40), (12, 20), (6, 10)]
    assert maps[-1].shape[2:] == (6, 10)


def test_a_file_that_is_no_judge_is_refused() -> None:
    with pytest.raises(ValueError, match="does not say the design"):
        load_judge(SHIPPED.vae)


def test_training_that_stopped_goes_on_as_if_it_had_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixart.mini.judge.measure_judge", lambda *_: {"all": 0.0})
    monkeypatch.setattr("pixart.mini.resume.ResumableTraining.every", 4)
    monkeypatch.setattr("pixart.mini.resume.ResumableTraining.saving", 0.0)
    scenery = Scenery(build_catalogue(SceneWish(0), 30, build_tokenizer().get_vocab()))
    straight = train_judge(tmp_path / "a.safetensors", scenery, steps=7, batch=2)

    class Stop(Exception):
        pass

    class BreaksAt6(Scenery):
        rendered = 0

        def render_mixed(self, generator: torch.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor]:
            self.rendered += 1
            if self.rendered == 7:
                raise Stop
            return super().render_mixed(generator, count)

    with pytest.raises(Stop):
        train_judge(tmp_path / "b.safetensors", BreaksAt6(scenery.ordinary), steps=7, batch=2,
                    state=tmp_path / "state.pt")
    resumed = train_judge(tmp_path / "b.safetensors", scenery, steps=7, batch=2, state=tmp_path / "state.pt")
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


@pytest.mark.parametrize("path", [SHIPPED.judge, SHIPPED.judge_a])
def test_the_shipped_judges_read_fresh_images(path: Path) -> None:
    assert measure_judge(load_judge(path), 250)["all"] > 0.995
