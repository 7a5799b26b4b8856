"""Results as files: what was written is read, what does not belong together is refused; the tables of them."""
import json
from dataclasses import replace

import pytest

from pixart.mini.measure.cost import Cost
from pixart.mini.measure.results import REAL, About, Measured, Row, merged, read_measured
from pixart.mini.measure.tables import differences, results_table
from pixart.mini.scenes import ATTRIBUTES

ABOUT = About(4, 7, False, "abc", "b 123", 0.99)
NAMES = list(ATTRIBUTES)


def row(name: str, *right: str, **more) -> Row:
    """right: of each sentence 1 or 0 for shape and for colour."""
    answers = tuple("".join({"shape": pair[0], "colour": pair[1]}.get(one, "-") for one in NAMES) for pair in right)
    return Row(name, answers, 1.25, (0.5, 0.25, -0.25, 1.5), **more)


GOOD = row("good", "11", "11", "11", "10", cost=Cost(4, 1.5e9, 12.34, "cpu, batch 4"))
BAD = row("bad", "11", "01", "00", "10", reference="good", psnr=(20.0, 21.0, 22.0, 23.0), ssim=(0.5,) * 4,
          lpips=(0.25,) * 4, diversity=(0.125, 0.375), cost=Cost(40, 3e9, 99.0, "cpu, batch 4"))
BOTH = Measured(ABOUT, (row(REAL, "11", "11", "11", "11"), GOOD, BAD))


def test_a_row_sums_up_its_sentences():
    assert BAD.accuracy == {"all": 0.5, "images": 0.25, "shape": 0.5, "colour": 0.5}
    sums = {name: (values.sum() / weights.sum()).item() for name, (values, weights) in BAD.sums().items()}
    assert (sums["kid"], sums["psnr"], sums["diversity"]) == (0.5, 21.5, 0.25)
    assert BAD.kid_error() == pytest.approx(0.7360 / 2, abs=1e-3)


def test_what_was_written_is_read(tmp_path):
    path = tmp_path / "results.json"
    BOTH.save(path)
    assert read_measured(path) == BOTH


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "x"}',
                                  '{"format": "pixart-mini-measured-1", "about": {}}'])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="^not a file of results"):
        read_measured(path)
    with pytest.raises(FileNotFoundError):
        read_measured(tmp_path / "none.json")


def test_rows_of_several_files_become_one_table():
    other = Measured(ABOUT, (BOTH.rows[0], replace(GOOD, cost=None), row("new", "11", "11", "11", "11")))
    found = merged([("a.json", BOTH), ("b.json", other)])
    assert [one.name for one in found.rows] == [REAL, "good", "bad", "new"]
    changed = Measured(ABOUT, (replace(GOOD, fid=9.0),))
    assert [one.name for one in merged([("a.json", BOTH), ("c.json", changed)]).rows][-1] == "good (c.json)"


@pytest.mark.parametrize("field, value", [("prompts", "other"), ("judge", "a 5")])
def test_results_of_other_sentences_or_judges_are_refused(field, value):
    other = Measured(replace(ABOUT, **{field: value}), BOTH.rows)
    with pytest.raises(ValueError, match=f"different {field}"):
        merged([("a.json", BOTH), ("b.json", other)])


def test_tables_have_a_row_per_method():
    text = results_table(BOTH)
    first, second = ([line for line in part.splitlines() if line.startswith("|")]
                     for part in text.split("FID (judge)", 1))
    assert first[3].startswith("| good | 87.5 +- ") and "| 75.0 +- " in first[3]
    assert second[-1] == "| bad | 1.25 | 0.500 +- 0.368 | 21.50 | 0.5000 | 0.2500 | 0.2500 | 40 | 3.000 | 99.0 |"
    assert second[-2].endswith("| 4 | 1.500 | 12.3 |") and "against: good" in text and "cpu, batch 4" in text
    widths = {line.count("|") for line in first[:-1]}
    assert len(widths) == 1


def test_differences_are_paired_and_signed():
    lines = differences(BOTH, "good").splitlines()
    assert lines[0].startswith("| minus good | all attributes | whole images | shape |")
    assert lines[2].startswith("| bad | -37.5 (") or lines[2].startswith("| bad | **-37.5** (")
    assert len([line for line in lines if line.startswith("| ")]) == 3        # neither the base nor the real images
    with pytest.raises(ValueError, match="no row 'none'; there are"):
        differences(BOTH, "none")


def test_the_file_is_plain_json(tmp_path):
    BOTH.save(tmp_path / "r.json")
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["rows"][1]["answers"][3].replace("-", "") == "10" and content["about"]["count"] == 4
