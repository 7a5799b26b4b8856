"""Answers sentence by sentence: what was asked, what was right, and how they are summed up."""
import torch

from pixart.mini import SHIPPED
from pixart.mini.judge import accuracy, load_judge, score
from pixart.mini.measure.accuracy import Answers, columns
from pixart.mini.measure.prompts import Prompts
from pixart.mini.scenes import ATTRIBUTES

NAMES = list(ATTRIBUTES)


def answers(*rows: dict[str, str]) -> Answers:
    """One row a sentence: 1 or 0 by attribute, others are not asked."""
    return Answers.parse(["".join(row.get(name, "-") for name in NAMES) for row in rows])


def test_shares_of_known_answers():
    found = answers({"shape": "1", "colour": "0"}, {"shape": "1", "colour": "1"}, {"shape": "0", "count": "1"},
                    {"shape": "1"}).counts()
    share = {name: (right.sum() / asked.sum()).item() for name, (right, asked) in found.items()}
    assert share == {"all": 5 / 7, "pictures": 0.5, "shape": 0.75, "colour": 0.5, "count": 1.0}


def test_text_and_back():
    one = answers({"shape": "1", "colour": "0"}, {"position": "1"})
    again = Answers.parse(one.text())
    assert torch.equal(one.asked, again.asked) and torch.equal(one.right, again.right)


def test_real_pictures_are_read_as_the_judge_reads_them_one_by_one():
    prompts, judge = Prompts.held_out(23, 7), load_judge(SHIPPED.judge)
    real = prompts.real()
    found = Answers.read(judge, prompts.scenes, real, 4, torch.device("cpu"))
    scores = [score(prompts.scenes[i], judge.attributes(real[i][None])[0]) for i in range(23)]
    for row, (asked, right) in enumerate(zip(found.asked, found.right)):
        assert {NAMES[k]: bool(right[k]) for k in range(len(NAMES)) if asked[k]} == scores[row]
    want = accuracy(scores)
    share = {name: (right.sum() / asked.sum()).item() for name, (right, asked) in found.counts().items()}
    assert {name: share[name] for name in want if name in share} == {k: v for k, v in want.items() if k in share}


def test_every_attribute_has_one_column_and_places_share_one():
    pooled = columns()
    assert sorted(k for members in pooled.values() for k in members) == list(range(len(NAMES)))
    for name in ("shape", "second shape", "second colour", "relation"):
        assert pooled[name] == [NAMES.index(name)]
    assert len(pooled["shape by place"]) == len(pooled["colour by place"]) == 9
