"""Training over HTTP and websocket: progress and previews as it goes, a stop that keeps the state, and going on."""
import json
import re
import time
from pathlib import Path

import pytest
import torch
from host.harness import texts
from host.test_server import image, node, png_size, require_packages, run, start

from pixart.checkpoint.lora.read import read_lora


def graph(name: str, steps: int, **changed: object) -> dict:
    """A LoRA of two coloured images on the tiny model, and an image generated with it."""
    wanted = {"model": ["model", 0], "method": "lora", "name": name, "steps": steps, "batch": 1, "learning_rate": 0.01,
              "rank": 2, "blocks": 1, "guidance": 1.5, "edges": "canny", "resolution": "256", "save_memory": True,
              "start_seed": 0, "preview_prompt": "a cat", "preview_every": 4, "images": ["two", 0], "clip": ["clip", 0],
              "vae": ["vae", 0], "captions": "a cat", "folder": ""}
    return {**start(), "two": node("EmptyImage", width=64, height=64, batch_size=2, color=0xff8000),
            "train": node("PixArtTrain", **{**wanted, **changed}),
            "show": node("PreviewImage", images=["train", 2]),
            "sampler": node("PixArtLCMSampler", model=["train", 0], positive=["positive", 0], latent=["empty", 0],
                            seed=1, steps=2, rule="official", denoise=1.0)}


@pytest.fixture
def ready(server, host):
    require_packages(host, graph("any", 1))
    return server


def state(server, name: str) -> dict:
    folder = Path(server.folder) / "output" / "pixart-train" / f"{name} (lora)"
    return torch.load(folder / "state.pt", weights_only=True)


def test_it_trains_with_progress_and_previews_and_generates_with_the_result(ready):
    (outcome,) = run(ready, graph("over-http", 8))
    assert png_size(image(ready, outcome)) == (128, 128)
    told = [(data["value"], data["max"]) for kind, data in outcome.messages
            if kind == "progress" and data["node"] == "train"]
    assert [pair for pair in told if pair[1] == 8][-1] == (8, 8) and (5, 8) in told
    lines = texts(outcome, "train")
    assert lines[0] == "reading the model" and lines[-1] == "trained 8 steps: over-http.safetensors"
    assert lines.index("getting ready to train") > 0
    assert any(re.fullmatch(r"training: step \d of 8, loss \d+\.\d{4}, \d+ s left", line) for line in lines)
    assert sum(b"\xff\xd8\xff" in frame[:200] for frame in outcome.previews) >= 2      # JPEG, at steps 4 and 8
    (shown,) = outcome.images("train")
    assert shown["filename"] == "step-0000008.png"
    assert len(outcome.images("show")) == 1
    assert read_lora(Path(ready.folder) / "models" / "loras" / "over-http.safetensors").parts[0].rank == 2
    names = ready.get("/object_info/PixArtDeltaLoraLoader")["PixArtDeltaLoraLoader"]["input"]["required"]["file"][0]
    assert "over-http.safetensors" in names


def test_stopped_it_keeps_what_it_has_and_goes_on_with_the_same_node(ready):
    posted = []

    def stop(kind: str, data: dict) -> None:
        if kind == "progress" and data["node"] == "train" and data["max"] == 5000 and data["value"] >= 3 and not posted:
            posted.append(ready.post("/interrupt", {}))

    (outcome,) = run(ready, graph("stopped", 5000, preview_prompt=""), on_message=stop)
    assert outcome.end == "execution_interrupted" and posted
    reached = state(ready, "stopped")["step"]
    assert texts(outcome, "train")[-1] == f"stopped at step {reached} of 5000; run the node again to go on"
    assert 3 <= reached < 5000
    assert (Path(ready.folder) / "models" / "loras" / "stopped.safetensors").is_file()
    (outcome,) = run(ready, graph("stopped", reached + 2, preview_prompt=""))
    image(ready, outcome)
    assert state(ready, "stopped")["step"] == reached + 2
    assert outcome.images("show") == []          # there is no preview to show, and that is no error


def test_a_wrong_connection_is_one_clear_error(ready):
    wrong = graph("wrong", 2)
    wrong["control"] = node("PixArtControlNetApply", positive=["positive", 0], control_net=["train", 1],
                            image=["two", 0], vae=["vae", 0], strength=1.0, start_percent=0.0, end_percent=1.0,
                            fade=0.0, blocks=0)
    wrong["sampler"]["inputs"]["positive"] = ["control", 0]
    (outcome,) = run(ready, wrong)
    assert outcome.end == "execution_error" and "made a LoRA (lora), no ControlNet" in outcome.error
    status, answer = ready.post("/prompt", {"prompt": graph("wrong", 0)})
    (error,) = answer["node_errors"]["train"]["errors"]
    assert status == 400 and error["type"] == "value_smaller_than_min"
    assert "steps" in json.dumps(error)


def test_the_server_is_free_for_others_meanwhile(ready):
    """Its page and its other routes answer while a training runs."""
    waits = []

    def ask(kind: str, data: dict) -> None:
        if kind == "progress" and data["node"] == "train" and len(waits) < 3:
            began = time.perf_counter()
            ready.get("/system_stats")
            waits.append(time.perf_counter() - began)

    (outcome,) = run(ready, graph("busy", 6, preview_prompt=""), on_message=ask)
    image(ready, outcome)
    assert len(waits) == 3 and max(waits) < 20
