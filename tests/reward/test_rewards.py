"""Weighted sums, reweighting (LongAlign), judge A as a reward, and the table of rewards."""
import random
from pathlib import Path

import pytest
import torch
from torch import nn

from pixart.mini.grammar import caption
from pixart.mini.reading import answers_of
from pixart.mini.scenes import labels, sample_scene
from pixart.reward.embedding import common_direction, mean_of_segments, reweight_all, reweighted
from pixart.reward.judge import JudgeReward
from pixart.reward.protocol import WeightedSum
from pixart.reward.table import REWARDS, RewardChoice, choice_path, open_rewards

SENTENCES = ["a large striped blue star on the left on a sand background", "a red circle above a green ring on white",
             "a small plain cyan cross at the top on a navy background"]


class Brightness(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, images, prompts):
        return images.mean((1, 2, 3))


def test_the_sum_is_weighted():
    both = WeightedSum([(Brightness("one"), 2.0), (Brightness("two"), -0.5)])
    seen = torch.rand(3, 3, 8, 8)
    assert torch.allclose(both(seen, ["x"] * 3), 1.5 * seen.mean((1, 2, 3)))
    for parts, message in (([], "no reward"), ([(Brightness("one"), 1.0)] * 2, "only once"),
                           ([(Brightness("one"), float("nan"))], "not a finite number")):
        with pytest.raises(ValueError, match=message):
            WeightedSum(parts)
    with pytest.raises(ValueError, match="3 images and 1 prompts"):
        both(seen, ["x"])


def test_every_caption_of_the_grammar_is_read_back():
    for index in range(900):
        scene = sample_scene(index, 3, "held-out" if index % 2 else "train", crowded=index % 3 == 2)
        assert answers_of(caption(scene, random.Random(index))) == labels(scene)


@pytest.mark.parametrize("text, message", [("a photo of a cat", "cannot read this sentence, which names 0"),
                                           ("a red circle", "one background"),
                                           ("a red circle on white", "none of these words"),
                                           ("a red circle and a blue ring on white", "does not say how"),
                                           ("three different things on white. a red star at the top in the middle.",
                                            "describes 1")])
def test_other_sentences_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        answers_of(text)


def test_judge_a_gives_the_log_likelihood_of_what_is_said():
    reward = JudgeReward.open()
    seen = torch.rand(3, 3, 128, 128, generator=torch.Generator().manual_seed(0)).requires_grad_()
    got = reward(seen, SENTENCES)
    logits = reward.network(seen)
    want = torch.stack([sum(part[row].log_softmax(0)[answer] for part, answer in zip(logits, answers_of(text))
                            if answer >= 0) for row, text in enumerate(SENTENCES)])
    assert torch.allclose(got, want, rtol=1e-5)
    got.sum().backward()
    assert (seen.grad != 0).float().mean() > 0.9


def test_reweighting_takes_out_what_all_prompts_share():
    reward, seen = JudgeReward.open(), torch.rand(3, 3, 128, 128)
    plain, said = reward(seen, SENTENCES), reward.texts(SENTENCES)
    reward.reweight(1.0)
    assert torch.equal(reward(seen, SENTENCES), plain)
    common = common_direction(said)
    left = reweighted(said, common, 0.0)
    assert (left @ common).abs().max() < 1e-6
    assert torch.allclose(reweighted(said, common, 0.3), 0.3 * said + 0.7 * left, atol=1e-6)
    reward.reweight(0.0)
    assert reward(seen, SENTENCES[:1] * 3).abs().max() < 1e-4          # equal prompts have nothing of their own
    reward.reweight(0.0, SENTENCES)
    assert torch.allclose(reward(seen[:1], SENTENCES[:1]), (left[:1] * reward.looks(seen[:1])).sum(-1), rtol=1e-4)
    for wrong in (-0.1, 1.5):
        with pytest.raises(ValueError, match="between 0 and 1"):
            reward.reweight(wrong)


def test_a_sum_is_reweighted_as_a_whole_or_not_at_all():
    judge = JudgeReward.open()
    with pytest.raises(ValueError, match="the reward bright reads words and image together and cannot be reweighted"):
        reweight_all(WeightedSum([(judge, 1.0), (Brightness("bright"), 1.0)]), 0.3, SENTENCES)
    assert judge.relevance == 1.0
    reweight_all(WeightedSum([(judge, 1.0)]), 0.3, SENTENCES)
    assert judge.relevance == 0.3 and judge.common is not None


def test_a_caption_counts_as_the_mean_of_its_segments():
    rows = torch.arange(8.0).view(4, 2)
    assert torch.equal(mean_of_segments(rows, [1, 3]), torch.stack([rows[0], rows[1:].mean(0)]))


def test_choices_are_read(tmp_path):
    assert RewardChoice.parse("clip") == RewardChoice("clip")
    assert RewardChoice.parse("hpsv2:2.5") == RewardChoice("hpsv2", 2.5)
    assert RewardChoice.parse("clip=/some/where:0.5") == RewardChoice("clip", 0.5, Path("/some/where"))
    assert RewardChoice.parse(r"clip=C:\here") == RewardChoice("clip", None, Path(r"C:\here"))
    with pytest.raises(ValueError, match="unknown reward 'beauty'"):
        RewardChoice.parse("beauty:1")


@pytest.mark.parametrize("name", [name for name in REWARDS if name != "judge"])
def test_a_missing_file_is_named_with_its_folder(name, tmp_path):
    kind = REWARDS[name]
    with pytest.raises(FileNotFoundError) as found:
        choice_path(RewardChoice(name), tmp_path)
    assert kind.file in str(found.value) and kind.source in str(found.value)
    assert str(found.value).endswith(str(tmp_path / kind.file))
    with pytest.raises(ValueError, match=f"{name}=PATH"):
        choice_path(RewardChoice(name), None)


def test_the_published_sum_is_the_default_weight():
    weights = {name: kind.weight for name, kind in REWARDS.items()}
    assert weights == {"judge": 1.0, "clip": 0.01, "pickscore": 0.05, "hpsv2": 5.0, "imagereward": 1.0}
    assert open_rewards([RewardChoice("judge")]).weights == {"judge": 1.0}
    assert open_rewards([RewardChoice("judge", 2.5)]).weights == {"judge": 2.5}
