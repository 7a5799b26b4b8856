"""The embedded model itself: what is in the repository shows what the sentence says."""
import json

import pytest
import torch
from safetensors import safe_open

from pixart.checkpoint import load, read_config
from pixart.checkpoint.layouts import expected_shapes
from pixart.checkpoint.lora.read import read_lora
from pixart.mini import SHIPPED, evaluate, recipe
from pixart.mini.measure.methods import Sampled
from pixart.sampling.preset import preset_from_header


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def test_all_weights_together_stay_under_the_budget():
    """40 MB for everything, 1 MB at least: the files are there and not pointers to somewhere else."""
    sizes = [path.stat().st_size for path in SHIPPED.root.rglob("*") if path.is_file()]
    assert 10e6 < sum(sizes) < 40e6


@pytest.mark.parametrize("path", [SHIPPED.teacher, SHIPPED.student])
def test_shipped_files_say_what_they_are(path):
    assert read_config(path) == recipe.MINI_CONFIG
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["pixart_config"])["hidden"] == 192


@pytest.mark.parametrize("name, steps, rank", [("tdm", 4, 16), ("dmd", 1, 11)])
def test_students_by_distribution_matching_say_how_they_are_sampled(name, steps, rank):
    path = getattr(SHIPPED, name)
    with safe_open(path, "pt") as file:
        found = preset_from_header(file.metadata(), path)
    assert (found.method, found.sampler, found.steps, found.rule) == (name, name, steps, "official")
    config = read_config(SHIPPED.teacher)
    assert {part.rank for part in read_lora(path).fitted(expected_shapes(config)).parts} == {rank}


def test_null_caption_is_the_encoded_empty_prompt():
    from pixart.text.t5 import T5Encoder
    want = T5Encoder(SHIPPED.t5, bits=16).encode([""], 40).context[0, 0]
    stored = load(SHIPPED.teacher, dtype=torch.float32).y_embedder.y_embedding
    for row in stored:
        torch.testing.assert_close(row, want, rtol=0.02, atol=0.02)


def test_four_steps_show_held_out_sentences():
    """On 60 sentences never seen in training; the README has the figures of the full measurement."""
    found = evaluate.evaluate(60, seed=11, methods=evaluate.USUAL_METHODS[1:2], diverse=0)
    real, student = (row.accuracy for row in found.rows)
    assert real["all"] > 0.97
    assert student["all"] > 0.97 and student["background"] > 0.98


@pytest.mark.parametrize("name, steps, least", [("tdm", 4, 0.92), ("dmd", 1, 0.88)])
def test_students_by_distribution_matching_show_held_out_prompts(name, steps, least):
    """On 60 sentences never seen in training; one step of the LCM student shows 71 % of what they say."""
    method = Sampled(name, "teacher", name, steps, lora=getattr(SHIPPED, name))
    real, student = (row.accuracy for row in evaluate.evaluate(60, seed=11, methods=[method], diverse=0).rows)
    assert real["all"] > 0.97 and student["all"] > least
