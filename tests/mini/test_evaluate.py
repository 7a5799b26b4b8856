"""The whole instrument on a few sentences: rows, reference, files, and what is refused."""
import pytest

from pixart.mini import SHIPPED
from pixart.mini.evaluate import USUAL_METHODS, checked_methods, evaluate, write_results
from pixart.mini.measure.batches import BenchImages
from pixart.mini.measure.bench import Bench
from pixart.mini.measure.cost import count
from pixart.mini.measure.methods import Sampled
from pixart.mini.measure.plot import settings_of_methods
from pixart.mini.measure.results import REAL, read_measured

FAST = Sampled("one step", "student", "lcm", 1)


class Real:
    """Gives the real images: the best there can be."""

    name = "perfect"

    def generate(self, bench) -> BenchImages:
        return bench.prompts.real()


@pytest.fixture(scope="module")
def found():
    return evaluate(10, 7, methods=[USUAL_METHODS[2], Real(), FAST], batch=4, reference=FAST, diverse=5)


def test_the_reference_comes_first_and_is_not_generated_twice(found):
    assert [row.name for row in found.rows] == [REAL, "one step", "LCM, 2 steps", "perfect"]
    assert [row.reference for row in found.rows] == [None, None, "one step", "one step"]


def test_merging_a_lora_is_no_work_of_an_image(found):
    """It was counted for whichever method with a LoRA came first."""
    bench = Bench.open(SHIPPED, 2)
    tdm = SHIPPED.root / "loras" / "pixart-mini" / "tdm.safetensors"
    with_lora, without = (count(Sampled("x", "teacher", "tdm", 4, lora=lora), bench) for lora in (tdm, None))
    assert with_lora == without


def test_any_object_with_a_name_that_generates_is_measured(found):
    real, _, two, perfect = found.rows
    assert perfect.answers == real.answers and perfect.accuracy["all"] > 0.97
    assert abs(perfect.fid) < 1e-3 and max(map(abs, perfect.kid)) < 1e-9
    assert perfect.cost.passes == 0 and two.cost.passes == 2 and two.cost.macs > 1e8
    assert set(perfect.diversity) == {0.0} and min(two.diversity) > 0


def test_images_are_kept_for_sheets(found):
    assert list(found.images) == [row.name for row in found.rows]
    assert all(len(drawn) == 10 for drawn in found.images.values())


def test_the_same_again_gives_the_same_numbers(found):
    again = evaluate(10, 7, methods=[USUAL_METHODS[2]], batch=4, reference=FAST, diverse=5).rows
    for one, other in zip(found.rows, again):
        assert (one.answers, one.kid, one.lpips) == (other.answers, other.kid, other.lpips)
        assert one.diversity == other.diversity


def test_files_of_the_report(found, tmp_path):
    pytest.importorskip("matplotlib")
    made = write_results(found.measured, tmp_path / "out")
    assert [path.name for path in made] == ["results.json", "results.md", "results.png"]
    assert [row.name for row in read_measured(made[0]).rows] == [row.name for row in found.rows]
    text = made[1].read_text(encoding="utf-8")
    assert "| minus one step |" in text and "judge-LPIPS" in text
    from PIL import Image
    with Image.open(made[2]) as plot:
        assert plot.width > 800


def test_one_method_at_several_settings_is_one_line_of_the_legend():
    names = ["20 steps", "steps 2x", "5 steps", "steps 10x", "teacher:ddim:8:2.5", "teacher:dpm:8:2.5", "x 1:2",
             "x 3:4"]
    assert settings_of_methods(names) == {
        "5 to 20 steps": {"20 steps": "20", "5 steps": "5"}, "steps 2 to 10x": {"steps 2x": "2", "steps 10x": "10"},
        "teacher:ddim:8:2.5": {"teacher:ddim:8:2.5": ""}, "teacher:dpm:8:2.5": {"teacher:dpm:8:2.5": ""},
        "x 1:2": {"x 1:2": ""}, "x 3:4": {"x 3:4": ""}}


def test_without_matplotlib_the_plot_is_named_as_missing(found, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("pixart.mini.evaluate.can_plot", lambda: False)
    assert [path.suffix for path in write_results(found.measured, tmp_path)] == [".json", ".md"]
    assert "matplotlib is missing" in caplog.text


def test_two_rows_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two rows would be called 'one step'"):
        checked_methods([FAST, Sampled("one step", "teacher", "lcm", 1)], None, SHIPPED)
    with pytest.raises(ValueError, match="real images"):
        checked_methods([Sampled(REAL, "teacher", "lcm", 1)], None, SHIPPED)


def test_unknown_judge_and_empty_batch_are_refused():
    with pytest.raises(ValueError, match="unknown judge 'c'"):
        evaluate(5, judge="c", methods=[FAST])
    with pytest.raises(ValueError, match="0 images at a time"):
        evaluate(5, batch=0, methods=[FAST])
    with pytest.raises(ValueError, match="work of 0 images"):
        evaluate(5, probe=0, methods=[FAST])
    with pytest.raises(ValueError, match="needs at least 3"):
        evaluate(2, methods=[FAST])
