"""What the campaign promises when stages fail, hang or find something wrong; and how it counts arithmetic."""
import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.campaign import Campaign
from benchmarks.gpu.stages import Stage
from benchmarks.instruments.cases import carry_out
from benchmarks.instruments.notes import Notes
from benchmarks.instruments.report import Report
from benchmarks.instruments.setting import Absent, Setting
from benchmarks.instruments.timing import pass_flops
from pixart.config import VARIANTS
from pixart.model.transformer import PixArtTransformer

ROOT = Path(__file__).resolve().parents[2]
ROW = '{"kind": "row", "table": "T", "cells": {"a": 1}}'
PROGRAMS = {"crash": f"import os; print('{ROW}', flush=True); os._exit(3)",
            "hang": f"import time; print('{ROW}', flush=True); time.sleep(600)",
            "garbage": f"print('not json'); print('{ROW}')"}


class Scripted(Campaign):
    """A campaign whose stages are small programs."""

    def __init__(self, out, names, seconds=15.0):
        super().__init__(out, seconds, rehearse=True)
        self.stages = [Stage(name, name, number, 0.5) for number, name in enumerate(names)]

    def rehearsal(self):
        return [[stage] for stage in self.stages]

    def command(self, stages, work, seconds):
        return [sys.executable, "-c", PROGRAMS[stages[0].name]]


def test_a_stage_that_crashes_or_hangs_stops_nothing(tmp_path):
    campaign = Scripted(tmp_path, ["crash", "hang", "garbage"])
    started = time.monotonic()
    failures = campaign.run()
    found = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert {name: facts["end"] for name, facts in found["stages"].items()} == {
        "crash": "ended with code 3", "hang": "stopped: its time was over", "garbage": "done"}
    assert [note["cells"] for note in found["notes"]] == [{"a": 1}] * 3
    assert failures == 2 and time.monotonic() - started < 120


def test_time_that_is_not_used_goes_to_later_stages(tmp_path):
    campaign = Scripted(tmp_path, ["garbage", "garbage"], seconds=100.0)
    assert campaign.seconds_for(0) == pytest.approx(50, abs=2)
    assert campaign.seconds_for(1) == pytest.approx(100, abs=2)


def collected(cases, until=60.0):
    lines = []
    carry_out(cases, Setting("cpu", True, None, time.monotonic() + until), Notes(lines.append))
    return [json.loads(line)["cells"]["verdict"] for line in lines]


def failing(setting, notes):
    raise RuntimeError("CUDA error: something\nmore of it")


def missing(setting, notes):
    raise Absent("no such package")


def fine(setting, notes):
    notes.check("fine", "", 0.1, 0.2)


def test_a_failing_case_is_a_result_and_stops_no_other():
    assert collected({"a": failing, "b": missing, "c": fine}) == [
        "FAILED: RuntimeError: CUDA error: something", "not run: no such package", "ok"]


def test_no_case_starts_when_the_time_is_over():
    assert collected({"c": fine}, until=1.0) == ["not run: no time was left"]


@pytest.mark.parametrize(("error", "passes"), [(0.0, True), (0.5, True), (0.51, False), (float("nan"), False),
                                               (float("inf"), False)])
def test_nan_never_passes(tmp_path, error, passes):
    lines = []
    Notes(lines.append).check("c", "x", error, 0.5)
    report = Report(tmp_path, {})
    report.add(json.loads(lines[0]))
    assert (report.failures() == 0) is passes


def test_aims_stand_first_and_say_whether_they_are_met(tmp_path):
    lines = []
    notes = Notes(lines.append)
    notes.aim("speed", 0.1, 0.12, "s")
    notes.aim("busy", 70.0, 80.0, "%", at_most=False)
    notes.row("T", a=1.0, b="x|y")
    report = Report(tmp_path, {"card": "none"})
    for line in lines:
        report.add(json.loads(line))
    text = report.path.read_text("utf-8")
    assert "| speed | <= 0.12 s | 0.1 s | yes |" in text and "| busy | >= 80 % | 70 % | NO |" in text
    assert "NO" in report.summary() and "speed" in report.summary()
    assert "| 1 | x/y |" in text and text.index("## Aims") < text.index("## T")


def test_arithmetic_is_counted_right():
    config = VARIANTS["alpha-512"]
    with torch.device("meta"):
        model = PixArtTransformer(config)
    context = torch.zeros(1, 120, config.caption_width, device="meta")
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        tokens = torch.zeros(1, 256, config.hidden, device="meta")
        text = model.y_embedder(context)
        for block in model.blocks:
            tokens = block(tokens, text, torch.zeros(1, 6, config.hidden, device="meta"), (16, 16))
    assert pass_flops(config, 256, 120) == pytest.approx(counted.get_total_flops(), rel=2e-3)


def test_the_gpu_is_asked_for_before_anything_is_written(tmp_path, monkeypatch, capsys):
    from benchmarks.gpu import command
    monkeypatch.setattr(command, "cuda_is_there", lambda: False)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "gpu", "--out", str(tmp_path / "out")])
    from benchmarks.__main__ import main
    assert main() == 2 and "--rehearse" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="asks processes of POSIX")
def test_no_stage_runs_on_when_the_campaign_is_stopped(tmp_path):
    program = subprocess.Popen([sys.executable, "-m", "benchmarks", "gpu", "--rehearse", "--out", str(tmp_path / "out"),
                                "--work", str(tmp_path / "work"), "--only", "models"], cwd=ROOT,
                               stderr=subprocess.PIPE, text=True)
    assert "-- models" in program.stderr.readline()
    time.sleep(1.0)
    program.terminate()
    program.communicate(timeout=60)
    assert program.returncode == 143
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError):         # it has ended since
            assert str(tmp_path / "work").encode() not in path.read_bytes()
