"""`python -m benchmarks speed`, rehearsed: every topic has its table; caches are held against fewer steps."""
import json
import os
import subprocess
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import pytest
import torch

from benchmarks.instruments.notes import Notes
from benchmarks.instruments.setting import Setting
from benchmarks.instruments.timing import paired_ratio, turns
from benchmarks.speed.caches import stretched
from benchmarks.speed.command import multiple
from benchmarks.speed.quality import Cached, Quality, cached, equal_time_steps, fewer, measure
from pixart.accelerate.ecad import write_ecad
from pixart.accelerate.schedule import BranchSchedule, whole_steps
from pixart.checkpoint import read_config
from pixart.mini import SHIPPED
from pixart.mini.measure.methods import Sampled

ROOT = Path(__file__).resolve().parents[2]
TABLES = ("The ceiling of the machine", "One pass, implementations in turns", "A guided step", "Sampling, prompts",
          "Decoding", "Samplings with work reused", "One pass with weights kept quantised", "A prompt through T5",
          "Other networks of the family",
          "Their work, counted", "Memory of one pass", "Peak memory of each part", "Peak memory of the whole job")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Of a whole rehearsal, without a host, with a schedule file for 28 blocks."""
    out = tmp_path_factory.mktemp("speed")
    bits = torch.ones(20, 28, 3, dtype=torch.bool)
    bits[1::2] = False
    write_ecad(out / "odd.json", BranchSchedule.of("odd", bits))
    environment = {key: value for key, value in os.environ.items() if key != "COMFYUI_PATH"}
    done = subprocess.run([sys.executable, "-m", "benchmarks", "speed", "--tiny", "--out", str(out / "found"), "--ecad",
                           str(out / "odd.json")], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return {**json.loads((out / "found" / "report.json").read_text("utf-8")),
            "markdown": (out / "found" / "report.md").read_text("utf-8"),
            "files": sorted(path.name for path in (out / "found").iterdir())}


def rows(report: dict, table: str) -> list[dict]:
    return [note["cells"] for note in report["notes"] if note["kind"] == "row" and note["table"].startswith(table)]


@pytest.mark.parametrize("table", TABLES)
def test_every_topic_has_its_table(report, table):
    assert rows(report, table) and f"## {table}" in report["markdown"]


def test_every_check_passes_or_says_what_is_missing(report):
    verdicts = [row["verdict"] for row in rows(report, "Correctness")]
    assert verdicts and all(verdict == "ok" or verdict.startswith("not run: ") for verdict in verdicts)


def test_every_precision_of_the_text_encoder_is_timed(report):
    found = {row["precision"]: row for row in rows(report, "A prompt through T5")}
    assert found.keys() >= {"16-bit", "int8"} and all(row["tokens"] == 120 and row["ms"] > 0 for row in found.values())


def test_feedback_costs_what_its_blocks_cost(report):
    """Blocks 7 to 20 of 28 twice, and its own: 43 of 28."""
    found = {row["network"]: row["/ PixArt"] for row in rows(report, "Their work, counted")}
    assert found["with feedback"] == pytest.approx(43 / 28, rel=0.02)
    assert any("feedback on blocks" in row["network"] for row in rows(report, "Other networks"))


def test_other_implementations_stand_beside_ours(report):
    assert {row["implementation"] for row in rows(report, "One pass, implementations")} == {"ours", "diffusers"}


def test_cache_dit_computes_the_same_steps_where_it_is_installed(report):
    found = [row["verdict"] for row in rows(report, "Correctness") if "cache-dit" in row["check"]]
    assert found and (found == ["ok"] or "cache_dit" in found[0])


def test_a_schedule_file_is_timed_on_fewer_blocks_with_its_share_of_work(report):
    found = {row["method"]: row for row in rows(report, "Samplings with work reused")}
    assert "28 blocks stretched to 3" in found["ecad odd"]["setting"] and found["ecad odd"]["less work"] > 1.5
    assert found["nothing reused"]["less work"] == 1


def test_the_report_has_a_plot(report):
    pytest.importorskip("matplotlib")
    assert report["files"] == ["passes.png", "report.json", "report.md"]


@pytest.mark.parametrize("blocks, depth", [(28, 4), (2, 6), (4, 4)])
def test_a_stretched_schedule_keeps_what_is_reused_where(blocks, depth):
    bits = torch.ones(2, blocks, 3, dtype=torch.bool)
    bits[1, :blocks // 2] = False
    found = stretched(BranchSchedule.of("half", bits), depth).tensor()
    assert found[1, :, 0].tolist() == [False] * (depth // 2) + [True] * (depth // 2) and found[0].all()


def test_equal_time_and_equal_work_are_numbers_of_steps():
    assert equal_time_steps(110.0, 200.0, 9.0) == 10 and equal_time_steps(1.0, 200.0, 9.0) == 2
    assert equal_time_steps(500.0, 200.0, 9.0) == 20 and equal_time_steps(100.0, 200.0, 0.0) == 20
    assert Cached(fewer(20), 2.0, 1.6).equal_work == 12
    assert cached("steps", 2.0).less_work == pytest.approx(2, rel=0.03)


def test_rounds_are_as_many_as_asked_for_and_ratios_are_within_them():
    calls: list[str] = []
    found = turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")},
                  Setting("cpu", False, Path(), float("inf"), rounds=3))
    assert calls == ["a", "b"] * 4 and [len(each) for each in found.values()] == [3, 3]
    assert paired_ratio([1.0, 4.0, 9.0], [1.0, 2.0, 3.0]) == 2.0


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "100", "x"])
def test_sizes_that_no_image_can_have_are_refused(text):
    with pytest.raises(ArgumentTypeError, match=f"{text} is not a whole number"):
        multiple(16)(text)


@pytest.mark.slow
def test_caches_stand_beside_fewer_steps_and_a_stopped_run_goes_on(tmp_path, monkeypatch):
    """Generating is forbidden in the second run: everything must come out of the folder, and be the same."""
    config = read_config(SHIPPED.teacher)
    third = whole_steps("third", 20, config.depth, range(0, 20, 3))
    file = write_ecad(tmp_path / "third.json", third)

    def rows_of_a_run() -> list[dict]:
        lines: list[str] = []
        made = Quality(tmp_path, 5, 1, 50, Setting("cpu", True, tmp_path, float("inf")))
        measure(made, ("steps",), (2.0,), (file,), {"steps 2x": 1.9}, Notes(lines.append))
        return [json.loads(line)["cells"] for line in lines]
    first = rows_of_a_run()
    found = {row["method"]: row for row in first}
    assert {"20 steps", "steps 2x", "every-n 2x", "random 2x", "10 steps", "10 steps, DDIM"} <= set(found)
    assert 2.5 < found["ecad third"]["less work"] < 3 and found["ecad third"]["PSNR dB"] < found["steps 2x"]["PSNR dB"]
    assert found["ecad third"]["minus every-n"]
    assert found["steps 2x"]["steps of equal work"] == 10 and found["steps 2x"]["times as fast, full size"] == 1.9
    assert {"minus 20 steps", "minus steps of equal work", "minus DDIM steps of equal work",
            "minus steps of equal time", "minus every-n",
            "minus random"} <= set(found["steps 2x"])
    assert found["20 steps"]["PSNR dB"] is None and 20 < found["steps 2x"]["PSNR dB"] < 58.9
    monkeypatch.setattr(Sampled, "generate", None)
    assert rows_of_a_run() == first
    with pytest.raises(ValueError, match="results of other prompts"):
        Quality(tmp_path, 6, 1, 50, Setting("cpu", True, tmp_path, float("inf")))
