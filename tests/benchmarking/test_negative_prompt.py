"""The benchmark of negative prompts: what sentences leave open, what the negative prompt names, and what is counted."""
import importlib.util
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from pixart.generation.request import Request
from pixart.mini.scenes import ATTRIBUTES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    name = "negative_prompt_mini"
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def networks(bench):
    return bench.Networks()


def test_a_sentence_says_all_but_what_it_leaves_open(bench):
    cases = bench.cases_of(50)
    for case in cases:
        words = set(case.text.split())
        assert case.open not in case.known and len(case.known) == 6
        assert not words & set(ATTRIBUTES[case.open])
        for name in {"shape", "colour", "size", "texture", "background"} - {case.open}:
            assert case.known[name] in words
    assert set(Counter((case.open, case.height, case.width) for case in cases).values()) == {2}


def test_the_negative_prompt_names_what_the_image_shows_or_the_next(bench):
    case = replace(bench.cases_of(1)[0], open="colour", known={"size": "large", "texture": "plain", "shape": "star",
                                                               "position": "left", "background": "navy"})
    way = bench.Way("any")
    assert bench.negative_prompt(case, "pink", way) == "pink"
    assert bench.negative_prompt(case, "pink", replace(way, other=True)) == "red"
    assert (bench.negative_prompt(case, "red", replace(way, whole=True))
            == "a large plain red star on the left on a navy background")
    there = replace(case, open="background")
    assert bench.negative_prompt(there, "sand", way) == "on a sand background"


def test_guidance_steers_the_images_that_the_others_start_from(bench, networks):
    case = bench.cases_of(1)[0]
    request = Request((case.text,), height=case.height, width=case.width, steps=2, seed=case.seed)
    caption, negative = (networks.t5.encode([text], 256) for text in (case.text, "red"))
    plain = networks.latent(request, caption, negative, bench.PLAIN)
    for nothing in (bench.guided_latent(networks.pipe, request, caption, negative, 1.0),
                    bench.guided_latent(networks.pipe, request, caption, caption, 3.0)):
        torch.testing.assert_close(nothing, plain, rtol=1e-3, atol=1e-3)
    steered = [networks.latent(request, caption, negative, bench.Way("any", **strength))
               for strength in ({"nag": 5.0}, {"cfg": 2.0})]
    assert all((latent - plain).abs().max() > 0.05 for latent in steered)


def test_an_image_counts_that_lost_the_value_and_nothing_else(bench):
    case = replace(bench.cases_of(1)[0], open="colour", known={"shape": "star", "size": "large"})
    plain = {"colour": "red", "shape": "star", "size": "large"}
    rows = [plain, {**plain, "colour": "blue"}, {**plain, "colour": "blue", "size": "small"}]
    found = bench.shares([case] * 3, [{"read": plain}] * 3, [{"read": row} for row in rows])
    assert {name: values.tolist() for name, (values, _) in found.items()} == {
        "still there": [1, 0, 0], "stated and right": [2, 2, 1], "gone, all else right": [0, 1, 0]}
    assert [weights.tolist() for _, weights in found.values()] == [[1, 1, 1], [2, 2, 2], [1, 1, 1]]


def test_the_command_prints_its_tables_and_goes_on(bench, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "STEPS", 1)
    monkeypatch.setattr(bench, "WAYS", (*bench.BASES, bench.STEERED[4], bench.DISTURBED[2]))
    bench.main(["--work", str(tmp_path), "--count", "5"])
    told = capsys.readouterr().out
    assert "| no negative prompt | 1 | " in told and re.search(r"\| CFG 2 \| 2 \| \d+ \| \d+\.\d \+- ", told)
    assert "100.0 +- 0.0" in told and "| NAG 5, sentence, another value | " in told and "background (1)" in told
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(kept) == len(bench.WAYS)
    bench.main(["--work", str(tmp_path), "--count", "5"])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == kept and capsys.readouterr().out == told
