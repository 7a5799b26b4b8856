"""ECAD's files: every published shape is read, counted work equals theirs, what is none is refused by name.

$PIXART_ECAD names a folder with the published `schedules`; then all of them are read too.
"""
import json
import os
from pathlib import Path

import pytest
import torch

from pixart.accelerate import BranchSchedule, Costs, ReuseBranches, TGate, read_ecad, t_gate_schedule, write_ecad
from pixart.accelerate.ecad import NotECAD, PublishedSchedule
from pixart.config import VARIANTS

PUBLISHED = os.environ.get("PIXART_ECAD")
FULL = 5713796136960            # 20 whole steps of both prompts at 256 px, as in their gen_default/default.json
GATE_15 = 4859854110720         # their tgate_m_015_sp_001_fi_001_warmup_002.json


def counted(found: PublishedSchedule, large: bool = False) -> int:
    config, tokens = VARIANTS["alpha-1024" if large else "alpha-256"], 4096 if large else 256
    rows = [2 if found.gate is None or step < found.gate else 1 for step in range(found.schedule.steps)]
    return Costs(config, tokens, 120, attention=False).of(found.schedule, rows)


def random_schedule(steps: int = 20, depth: int = 28) -> BranchSchedule:
    bits = torch.rand(steps, depth, 3, generator=torch.Generator().manual_seed(5)) < 0.4
    return BranchSchedule.of("random", bits)


def test_counted_work_equals_the_published_totals():
    assert counted(PublishedSchedule(BranchSchedule.full(20, 28))) == FULL
    assert counted(PublishedSchedule(BranchSchedule.full(20, 28)), large=True) == 85628843458560
    assert counted(PublishedSchedule(t_gate_schedule(20, 28, 15), gate=15)) == GATE_15


@pytest.mark.parametrize("config", [None, {}, {"height": 1024, "width": 1024, "transformer_weights": "x"},
                                    {"pipeline": {"name": "pixart_sigma", "kwargs": {}}}])
@pytest.mark.parametrize("metrics", [None, {}, {"total_macs": 12, "latency": {"avg": 84.1}}])
def test_all_published_shapes_are_read(tmp_path, config, metrics):
    path = write_ecad(tmp_path / "s.json", random_schedule(), num_affected_steps=20)
    content = json.loads(path.read_text())
    content.update({name: part for name, part in (("config", config), ("metrics", metrics)) if part is not None})
    path.write_text(json.dumps(content))
    found = read_ecad(path)
    assert found.schedule == random_schedule() and found.gate is None
    assert found.macs == (metrics or {}).get("total_macs") and type(found.policy()) is ReuseBranches


def test_saving_is_stable_and_in_their_order(tmp_path):
    first = write_ecad(tmp_path / "a.json", random_schedule(), gate=11, macs=7)
    found = read_ecad(first)
    again = write_ecad(tmp_path / "b.json", found.schedule, found.gate, found.macs)
    assert first.read_bytes() == again.read_bytes()
    step = json.loads(first.read_text())["cache_schedule"]["schedule"]["003"]["4"]
    assert [step[name] for name in ("attn1", "attn2", "ff")] == random_schedule().tensor()[3, 4].tolist()
    assert step["custom_compute_attn"] == {"name": "compute_attn_tgate", "kwargs": {"gate_step": 11}}


def test_a_gate_is_honoured(tmp_path):
    policy = read_ecad(write_ecad(tmp_path / "s.json", t_gate_schedule(20, 28, 15), gate=15)).policy()
    assert isinstance(policy, TGate) and policy.averaged == ("cross_attn",)
    assert policy.guides(14, 20) and not policy.guides(15, 20)


def changed(path: Path, change) -> Path:
    content = json.loads(write_ecad(path, random_schedule()).read_text())
    change(content, content["cache_schedule"]["schedule"])
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("change, message", [
    (lambda c, s: c["cache_schedule"].update(schedule={"000": {"0": {"full_attn": True, "full_ff": True}}}), "FLUX"),
    (lambda c, s: s.pop("007"), "says 20 steps and has 19"),
    (lambda c, s: s["004"].pop("9"), "step 4 of the schedule has 27 blocks"),
    (lambda c, s: s["004"]["9"].update(ff=1), "step 4 of the schedule holds something else"),
    (lambda c, s: s["004"]["9"].update(custom_compute_ff={"name": "their_own"}), "'their_own', which is unknown"),
    (lambda c, s: c.update(config={"pipeline": {"name": "other"}}), "pipeline 'other'"),
    (lambda c, s: s["004"]["9"].pop("attn2"), "step 4 of the schedule holds something else"),
    (lambda c, s: c.pop("cache_schedule"), "not a schedule file of ECAD"),
])
def test_what_is_no_schedule_for_pixart_is_refused_by_name(tmp_path, change, message):
    path = changed(tmp_path / "odd.json", change)
    with pytest.raises(NotECAD, match=f"{message}.*odd.json"):
        read_ecad(path)


def test_no_file_and_no_json(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no schedule file at this place: .*none.json"):
        read_ecad(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("no")
    with pytest.raises(NotECAD, match="text.json"):
        read_ecad(tmp_path / "text.json")


@pytest.mark.skipif(not PUBLISHED, reason="$PIXART_ECAD names no folder with ECAD's published schedules")
def test_every_published_file():
    """Their 256 px seeds name the 1024 px model in `config` but were counted at 256: the folder tells the size."""
    read = refused = 0
    for path in sorted(Path(PUBLISHED or "").rglob("*.json")):
        if "flux" in path.parent.as_posix():
            with pytest.raises(NotECAD, match="FLUX"):
                read_ecad(path)
            refused += 1
            continue
        found = read_ecad(path)
        if found.macs is not None:
            assert counted(found, large="1024" in path.parent.name) == found.macs, path
            read += 1
    assert read and refused
