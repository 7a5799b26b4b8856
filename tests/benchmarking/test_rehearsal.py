"""The campaign for a GPU, rehearsed: every stage on the CPU with tiny models, so that none breaks on the day."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAGES = {"models", "images", "trainers", "text", "memory", "computed", "latency", "compiled", "host"}
MINUTES = 30        # generous: a busy machine is no failure


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Of a whole rehearsal, without a host: that one is rehearsed in the host tier."""
    out = tmp_path_factory.mktemp("campaign")
    environment = {key: value for key, value in os.environ.items() if key != "COMFYUI_PATH"}
    done = subprocess.run([sys.executable, "-m", "benchmarks", "gpu", "--rehearse", "--minutes", str(MINUTES), "--out",
                           str(out)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:] + (out / "report.md").read_text("utf-8")[-4000:]
    return {**json.loads((out / "report.json").read_text("utf-8")), "markdown": (out / "report.md").read_text("utf-8"),
            "files": sorted(path.name for path in out.iterdir())}


def rows(report: dict, table: str) -> list[dict]:
    return [note["cells"] for note in report["notes"] if note["kind"] == "row" and note["table"].startswith(table)]


def test_every_stage_ends_by_itself(report):
    assert {name: facts["end"] for name, facts in report["stages"].items()} == dict.fromkeys(STAGES, "done")


def test_every_check_passes_or_says_what_is_missing(report):
    verdicts = [row["verdict"] for row in rows(report, "Correctness")]
    assert len(verdicts) > 60 and all(verdict == "ok" or verdict.startswith("not run: ") for verdict in verdicts)


def test_a_missing_host_is_a_line(report):
    assert any("no ComfyUI at $COMFYUI_PATH" in row["verdict"] for row in rows(report, "Correctness"))


@pytest.mark.parametrize("table", ["One pass", "One image", "A guided step", "Where the time goes",
                                   "Compiled and recorded", "Measured ceiling", "Memory of images",
                                   "Memory of trainings", "Memory of trainings, computed", "The whole job",
                                   "Text encoder"])
def test_every_topic_has_its_table(report, table):
    assert rows(report, table) and f"## {table}" in report["markdown"]


def test_the_report_is_two_files(report):
    assert report["files"] == ["report.json", "report.md"]
