"""PixArt ReNO over HTTP and websocket: progress, previews and curve as it goes, stock samplers on its noise, a stop."""
import re
from pathlib import Path

import pytest
from host.harness import texts
from host.test_server import image, node, png_size, refused, run, start

from pixart.reward.record import load_noise

PROMPT = "a red circle above a green ring on white"


def graph(iterations: int, **changed: object) -> dict:
    """Noise of an image on the tiny model, and that image."""
    wanted = {"model": ["model", 0], "positive": ["positive", 0], "vae": ["vae", 0], "latent": ["empty", 0],
              "prompt": PROMPT, "seed": 5, "sampler": "lcm", "steps": 1, "rule": "official", "iterations": iterations,
              "rate": 5.0, "clip": 0.1, "regularisation": 0.01, "judge": 1.0, "clip_score": 0.0, "pickscore": 0.0,
              "hpsv2": 0.0, "imagereward": 0.0, "save_memory": False}
    made = {**start(), "reno": node("PixArtReNO", **{**wanted, **changed}),
            "save": node("SaveImage", images=["reno", 0], filename_prefix="test"),
            "curve": node("PreviewImage", images=["reno", 4])}
    del made["decode"]
    return made


def test_it_optimises_with_progress_and_previews_and_its_noise_goes_into_stock_nodes(server):
    made = graph(3)
    made.update(schedule=node("PixArtLCMSigmas", model=["model", 0], steps=1, rule="official", denoise=1.0),
                guider=node("BasicGuider", model=["schedule", 0], conditioning=["positive", 0]),
                again=node("SamplerCustomAdvanced", noise=["reno", 1], guider=["guider", 0], sampler=["schedule", 1],
                           sigmas=["schedule", 2], latent_image=["empty", 0]),
                decode=node("VAEDecode", samples=["again", 0], vae=["vae", 0]),
                second=node("SaveImage", images=["decode", 0], filename_prefix="again"))
    (outcome,) = run(server, made)
    assert png_size(image(server, outcome)) == (128, 128)
    told = [data["value"] for kind, data in outcome.messages if kind == "progress" and data["node"] == "reno"]
    assert told == [1, 2, 3]
    lines = texts(outcome, "reno")
    assert lines[:2] == ["reading the rewards", "reading the model"]
    assert re.match(r"reward -[\d.]+ -> -[\d.]+ at iteration \d of 3", lines[-1])
    assert sum(b"\xff\xd8\xff" in frame[:200] for frame in outcome.previews) >= 3
    assert len(outcome.images("curve")) == 1 and len(outcome.images("second")) == 1


def test_stopped_it_keeps_the_best_and_the_next_run_works(server):
    posted = []

    def stop(kind: str, data: dict) -> None:
        if kind == "progress" and data["node"] == "reno" and data["value"] >= 2 and not posted:
            posted.append(server.post("/interrupt", {}))
    (outcome,) = run(server, graph(1000), on_message=stop)
    assert outcome.end == "execution_interrupted" and posted
    kept = re.search(r"kept as pixart-reno/(\S+)", texts(outcome, "reno")[-1])
    assert kept, texts(outcome, "reno")[-3:]
    assert load_noise(Path(server.folder) / "output" / "pixart-reno" / kept[1]).shape == (1, 4, 16, 16)
    (outcome,) = run(server, graph(1, seed=6))
    image(server, outcome)


@pytest.mark.parametrize("changed, finding", [({"hpsv2": 5.0}, "put HPS_v2.1_compressed.pt (xswu/HPSv2")])
def test_a_missing_reward_is_named_before_it_runs(server, changed, finding):
    errors = refused(server, graph(1, **changed))["reno"]
    assert all(finding in error["details"] for error in errors)
