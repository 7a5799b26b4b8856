"""Answers sentence by sentence: what was asked, what was right, and how they are summed up."""
import pytest
import torch

from pixart.mini import SHIPPED
from pixart.mini.judge import load_judge
from pixart.mini.measure.accuracy import Answers, columns, most_likely
from pixart.mini.measure.prompts import Prompts
from pixart.mini.scenes import ATTRIBUTES, sample_scene, stated_facts

NAMES = list(ATTRIBUTES)


def answers(*rows: dict[str, str]) -> Answers:
    """One row a sentence: 1 or 0 by attribute, others are not asked."""
    return Answers.parse(["".join(row.get(name, "-") for name in NAMES) for row in rows])


def test_shares_of_known_answers():
    found = answers({"shape": "1", "colour": "0"}, {"shape": "1", "colour": "1"}, {"shape": "0", "count": "1"},
                    {"shape": "1"}).shares()
    assert found == {"all": 5 / 7, "images": 0.5, "shape": 0.75, "colour": 0.5, "count": 1.0}


def test_text_and_back():
    one = answers({"shape": "1", "colour": "0"}, {"position": "1"})
    again = Answers.parse(one.text())
    assert torch.equal(one.asked, again.asked) and torch.equal(one.right, again.right)


@pytest.mark.parametrize("crowded", [False, True])
def test_asked_is_what_a_caption_states_and_nothing_else(crowded: bool):
    scenes = [sample_scene(index, 0, crowded=crowded) for index in range(30)]
    facts = [stated_facts(scene) for scene in scenes]
    said = torch.tensor([[ATTRIBUTES[name].index(known[name]) if name in known else 0 for name in NAMES]
                         for known in facts])
    found = Answers.of(scenes, said)
    assert [{name for name, asked in zip(NAMES, row) if asked} for row in found.asked] == list(map(set, facts))
    assert torch.equal(found.right, found.asked)
    said[:, NAMES.index("background")] += 1
    wrong = Answers.of(scenes, said)
    assert not wrong.right[:, NAMES.index("background")].any() and wrong.shares()["images"] == 0
    assert torch.equal(wrong.right[:, 1:], found.right[:, 1:]) and NAMES[0] == "background"


def test_real_images_are_read_as_the_judge_reads_them_one_by_one():
    prompts, judge = Prompts.held_out(23, 7), load_judge(SHIPPED.judge)
    real = prompts.real()
    found = Answers.read(judge, prompts.scenes, real, 4, torch.device("cpu"))
    for i, scene in enumerate(prompts.scenes):
        (choice,) = most_likely(judge, real[i][None]).tolist()
        read = {name: answers[number] for (name, answers), number in zip(ATTRIBUTES.items(), choice)}
        want = {name: read[name] == answer for name, answer in stated_facts(scene).items()}
        assert {NAMES[k]: bool(found.right[i, k]) for k in range(len(NAMES)) if found.asked[i, k]} == want


def test_every_attribute_has_one_column_and_places_share_one():
    pooled = columns()
    assert sorted(k for members in pooled.values() for k in members) == list(range(len(NAMES)))
    for name in ("shape", "second shape", "second colour", "relation"):
        assert pooled[name] == [NAMES.index(name)]
    assert len(pooled["shape by place"]) == len(pooled["colour by place"]) == 9
