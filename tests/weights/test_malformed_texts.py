"""Schedules, lists, base shapes and workflows that are wrong in one place: one message each, naming the file, soon."""
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from weights import mutations
from weights.refusals import DEEP, NAN, refused

from pixart.accelerate import read_ecad
from pixart.accelerate.search import Trials
from pixart.client.graph import read_workflow
from pixart.files.prompts import read_prompts
from pixart.train.base_shapes import read_base_width
from pixart.train.caption_list import read_captions


def schedule(folder: Path, change: Callable[[dict, dict], object]) -> Path:
    path = mutations.schedule(folder)
    content = json.loads(path.read_text())
    change(content, content["cache_schedule"])
    path.write_text(json.dumps(content))
    return path


def gate(value: object) -> Callable[[dict, dict], object]:
    return lambda c, s: c.update(config={"pipeline": {"name": "tgate", "kwargs": {"gate_step": value}}})


@pytest.mark.parametrize("change, says", [
    (lambda c, s: s.update(num_blocks=10 ** 9), "num_blocks is 1000000000"),
    (lambda c, s: s.update(num_blocks=float("inf")), "num_blocks is inf"),
    (lambda c, s: s.update(num_blocks=2.7), "num_blocks is 2.7"),
    (lambda c, s: s.update(num_inference_steps=10 ** 400), "num_inference_steps is a number of more than 30 digits"),
    (lambda c, s: s.update(schedule=[1]), "schedule is a list of 1"),
    (lambda c, s: s["schedule"].update({"000": [1]}), "the schedule has an entry '000' of a list of 1"),
    (lambda c, s: s["schedule"].update(first={}), "an entry 'first'"),
    (lambda c, s: s["schedule"].update({"0": s["schedule"]["001"]}), "the schedule has number 0 twice"),
    (lambda c, s: s["schedule"]["000"].update({"00": s["schedule"]["000"]["0"]}), "step 0 has number 0 twice"),
    (lambda c, s: s.update(name="a\nb"), "name is 'a\\nb'"),
    (lambda c, s: s.update(name="x" * 10 ** 6), "name is 'xxx"),
    (gate(-5), "gate_step is -5"), (gate(1.9), "gate_step is 1.9"), (gate(True), "gate_step is True"),
    (lambda c, s: c.update(config={"pipeline": [1]}), "pipeline is a list of 1"),
    (lambda c, s: c.update(metrics={"total_macs": NAN}), "total_macs is nan"),
    (lambda c, s: s["schedule"]["000"]["0"].update(custom_compute_attn="x"), "custom_compute_attn is 'x'"),
])
def test_a_schedule(tmp_path, change, says):
    refused(read_ecad, schedule(tmp_path, change), says)


@pytest.mark.parametrize("written, says", [
    (DEEP, "nested too deeply"), ("7", "is a JSON int"), ('{"cache_schedule": ' + "9" * 5000 + "}", "not readable"),
    ('{"a": "\xff"}', "lacks cache_schedule")])
def test_a_schedule_that_is_none(tmp_path, written, says):
    (tmp_path / "s.json").write_text(written, encoding="utf-8")
    refused(read_ecad, tmp_path / "s.json", says)


def test_a_schedule_of_three_gigabytes_is_not_read(tmp_path):
    with (tmp_path / "s.json").open("wb") as file:
        os.truncate(file.fileno(), 3 << 30)
    refused(read_ecad, tmp_path / "s.json", "has 3221225472 bytes")


@pytest.mark.parametrize("line, says", [
    ("hello}", "line 2 is not readable as JSON"), ("[1, {}]\n{}", "line 3 is not a trial"),
    ('{"loss": 1, "work": 1, "bits": "101"}', "line 2 is not a trial of 2 x 2 x 3 bits"),
    ('{"loss": NaN, "work": 1, "bits": "101010101010"}', "loss is nan in line 2"),
    ('{"loss": "a", "work": 1, "bits": "101010101010"}', "loss is 'a' in line 2")])
def test_trials_of_a_search(tmp_path, line, says):
    Trials(tmp_path / "trials.jsonl", 2, 2, "x")
    with (tmp_path / "trials.jsonl").open("a") as file:
        file.write(line + "\n")
    refused(lambda path: Trials(path, 2, 2, "x"), tmp_path / "trials.jsonl", says)


@pytest.mark.parametrize("name, written, says", [
    ("a.csv", b"prompt\na red cat, a dog\n", "line 2 has more values than the first line has columns"),
    ("a.csv", b"prompt,seed,prompt\na,1,b\n", "names a column twice, prompt"),
    ("a.csv", b'prompt\n"a\nb', "is not a valid table"),
    ("a.csv", b"prompt\n" + b"a" * 200_000, "is not a valid table"),
    ("a.csv", b"prompt,seed\na," + b"9" * 5000, "line 2 has seed '999"),
    ("a.jsonl", DEEP.encode(), "line 1 is JSON nested too deeply"),
    ("a.jsonl", b'"b"\n{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "line 2 is not JSON"),
    ("a.jsonl", b'{"prompt": "a", "seed": NaN}', "line 1 has seed nan"),
    ("a.txt", "a cat".encode("utf-16"), "is not UTF-8 (byte 0)")])
def test_a_list_of_prompts(tmp_path, name, written, says):
    (tmp_path / name).write_bytes(written)
    refused(read_prompts, tmp_path / name, says)


@pytest.mark.parametrize("written, says", [(b"caf\xe9", "not UTF-8 (byte 3)"), (b"\n \n", "no captions"),
                                           ("a cat".encode("utf-16"), "not UTF-8 (byte 0)")])
def test_a_list_of_captions(tmp_path, written, says):
    (tmp_path / "c.txt").write_bytes(written)
    refused(read_captions, tmp_path / "c.txt", says)


WIDTH = "x_embedder.proj.bias"
BOMB = "\n".join(f"l{i}: &l{i} [{', '.join(['*l' + str(i - 1)] * 9) if i else '1, 1'}]" for i in range(9))


@pytest.mark.parametrize("written, says", [
    (DEEP, "nested too deeply"), ("- " * 5000, "nested too deeply"), (f"{WIDTH}: 64", "does not say the base width"),
    (f"{WIDTH}: []", "does not say"), (f"{WIDTH}: {{a: 1}}", "does not say"), (f"{WIDTH}: [-64]", "does not say"),
    (f"{WIDTH}: [true]", "does not say"), (f"{WIDTH}: [7]", "no PixArt has the base width 7"),
    (f"{WIDTH}: [2001-99-99]", "not a base-shape file"),
    ("!!python/object/apply:os.system [ls]", "not a base-shape file"),
    (f"{BOMB}\n{WIDTH}: [24]\n1: 2", "entries do not fit this model"),
    (f"{BOMB}\n{WIDTH}: [24]\nblocks.0.attn.proj.bias: *l8", "entries do not fit this model")])
def test_base_shapes(tmp_path, written, says):
    (tmp_path / "b.bsh").write_text(written)
    refused(lambda path: read_base_width(path, mutations.CONFIG), tmp_path / "b.bsh", says)


@pytest.mark.parametrize("written, says", [
    (DEEP, "nested too deeply"), ('{"1": ' + "9" * 5000 + "}", "cannot be read"),
    ('{"1": {"class_type": "A", "inputs": {}, "_meta": [1]}}', "expected nodes with class_type")])
def test_a_workflow(tmp_path, written, says):
    (tmp_path / "w.json").write_text(written)
    refused(read_workflow, tmp_path / "w.json", says)
