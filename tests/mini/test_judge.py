"""The judge reads, is scored by what captions state, and keeps its own accuracy in its file."""
import random
from pathlib import Path

import pytest
import torch

from pixart.mini import SHIPPED
from pixart.mini.grammar import ATTRIBUTES, facts, sample
from pixart.mini.judge import (
    FEATURES,
    Judge,
    accuracy,
    fresh,
    load_judge,
    measure,
    own_accuracy,
    save_judge,
    score,
    train_judge,
    worsen,
)


@pytest.fixture
def judge() -> Judge:
    torch.manual_seed(0)
    return Judge().eval()


@pytest.mark.parametrize("size", [(128, 128), (96, 160), (160, 96)])
def test_it_reads_every_bucket(judge: Judge, size: tuple[int, int]) -> None:
    pictures = torch.rand(3, 3, *size)
    assert judge.features(pictures).shape == (3, FEATURES)
    reads = judge.attributes(pictures)
    assert len(reads) == 3
    assert all(read[name] in answers for read in reads for name, answers in ATTRIBUTES.items())


def test_grey_pictures_are_refused(judge: Judge) -> None:
    with pytest.raises(ValueError, match=r"\(2, 1, 64, 64\)"):
        judge.features(torch.rand(2, 1, 64, 64))


def test_scores_cover_what_a_caption_states_and_nothing_else() -> None:
    for index in range(30):
        scene = sample(index, 0)
        read = {name: answers[0] for name, answers in ATTRIBUTES.items()} | facts(scene)
        assert score(scene, read) == dict.fromkeys(facts(scene), True)
        wrong = read | {"colour": "no colour"}
        assert score(scene, wrong) == dict.fromkeys(facts(scene), True) | {"colour": False}


def test_accuracy_counts_answers_and_pictures() -> None:
    shares = accuracy([{"shape": True, "colour": False}, {"shape": True, "colour": True}])
    assert shares == {"shape": 1.0, "colour": 0.5, "all": 0.75, "pictures": 0.5}


def test_a_written_judge_reads_the_same(judge: Judge, tmp_path: Path) -> None:
    save_judge(judge, tmp_path / "judge.safetensors", {"all": 0.5})
    again = load_judge(tmp_path / "judge.safetensors")
    pictures = fresh(0, 4, "file")[1]
    assert torch.allclose(again.features(pictures), judge.features(pictures), atol=2e-2)
    assert own_accuracy(tmp_path / "judge.safetensors") == {"all": 0.5}
    assert (tmp_path / "judge.safetensors").stat().st_size < 2_000_000


def test_worse_pictures_stay_in_range_and_shape() -> None:
    pictures = fresh(3, 4, "worse")[1]
    for seed in range(6):
        changed = worsen(pictures, random.Random(seed))
        assert changed.shape == pictures.shape
        assert changed.min() >= 0 and changed.max() <= 1 and not torch.equal(changed, pictures)


def test_training_that_stopped_goes_on_as_if_it_had_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixart.mini.judge.measure", lambda *_: {"all": 0.0})
    monkeypatch.setattr("pixart.mini.resume.Progress.every", 4)
    straight = train_judge(tmp_path / "a.safetensors", steps=7, batch=2)

    class Stop(Exception):
        pass

    def breaks_at_6(step: int, batch: int, seed: str) -> tuple:
        if step == 6:
            raise Stop
        return fresh(step, batch, seed)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr("pixart.mini.judge.fresh", breaks_at_6)
        train_judge(tmp_path / "b.safetensors", steps=7, batch=2, state=tmp_path / "state.pt")
    resumed = train_judge(tmp_path / "b.safetensors", steps=7, batch=2, state=tmp_path / "state.pt")
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_the_shipped_judge_reads_fresh_pictures() -> None:
    assert measure(load_judge(SHIPPED.judge), 250)["all"] > 0.995
