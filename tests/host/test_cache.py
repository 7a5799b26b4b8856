"""PixArt Cache over HTTP: what users of cache nodes complain of, each as queued prompts."""
import pytest
from host import harness
from host.test_server import image, ksampler, node, run


def cached(steps: int = 8, method: str = "every-n", budget: float = 2.0, **changed: object) -> dict[str, dict]:
    graph = ksampler(steps, **{"model": ["cache", 0], **changed})
    graph["cache"] = node("PixArtCache", model=["model", 0], method=method, budget=budget, start=0.0, end=1.0)
    return graph


def sized(graph: dict[str, dict], resolution: str) -> dict[str, dict]:
    graph["empty"]["inputs"]["resolution"] = resolution
    return graph


def test_it_says_on_itself_what_it_did(server):
    (outcome,) = run(server, cached(seed=61))
    image(server, outcome)
    said = harness.texts(outcome, "cache")
    assert len(said) == 2 and "every 2 from the first: " in said[0]
    assert "of 96 branches computed" in said[1]


def test_bypassed_the_image_is_as_without(server):
    """Seeds beside each other, so that the host runs the sampler each time."""
    outcomes = run(server, cached(seed=62), ksampler(8, seed=62), cached(budget=1.0, seed=62))
    reused, plain, switched_off = (image(server, outcome) for outcome in outcomes)
    assert reused != plain == switched_off


def test_a_prompt_that_reuses_the_nodes_output_is_cached_too(server):
    """Other seeds, then the first again: nothing is spent or left from the run before."""
    outcomes = run(server, *(cached(seed=seed) for seed in (63, 64, 63)))
    images = [image(server, outcome) for outcome in outcomes]
    assert images[0] == images[2] != images[1]
    assert all(any("less work, " in text for text in harness.texts(outcome, "cache")) for outcome in outcomes)


def test_another_size_between_two_runs(server):
    """256 pixels between two of 128."""
    graphs = [sized(cached(method="first-block", seed=65), side) for side in ("128", "256")]
    again = sized(cached(method="first-block", seed=65), "128")
    outcomes = run(server, *graphs, again)
    images = [image(server, outcome) for outcome in outcomes]
    assert images[0] == images[2] and len(images[1]) != len(images[0])


def test_a_second_sampler_and_a_hires_pass_in_one_graph(server):
    graph = cached(seed=66)
    graph["larger"] = node("LatentUpscaleBy", samples=["sampler", 0], upscale_method="nearest-exact", scale_by=2.0)
    graph["second"] = node("KSampler", **{**graph["sampler"]["inputs"], "latent_image": ["larger", 0], "steps": 6,
                                          "denoise": 0.5})
    graph["decode"]["inputs"]["samples"] = ["second", 0]
    (outcome,) = run(server, graph)
    assert image(server, outcome)[16:24] == (256).to_bytes(4, "big") * 2
    assert sum("less work, " in text for _, text in harness.told(outcome)) == 2


def test_after_a_cancelled_run(server):
    posted: list = []

    def stop(kind: str, data: dict) -> None:
        if kind == "progress" and data["value"] >= 2 and not posted:
            posted.append(server.post("/interrupt", {}))

    (want,) = run(server, cached(seed=67, method="first-block"))
    (cut,) = run(server, cached(300, seed=68, method="first-block"), on_message=stop)
    (got,) = run(server, cached(seed=67, method="first-block"))
    assert cut.end == "execution_interrupted" and image(server, got) == image(server, want)


def test_two_models_in_one_graph(server):
    graph = cached(seed=69)
    graph["other"] = node("PixArtLoader", file="alpha-512.safetensors", variant="auto", weight_dtype="fp32")
    graph["other cache"] = node("PixArtCache", model=["other", 0], method="steps", budget=2.0, start=0.0, end=1.0)
    graph["second"] = node("KSampler", **{**graph["sampler"]["inputs"], "model": ["other cache", 0],
                                          "latent_image": ["sampler", 0], "denoise": 0.8})
    graph["decode"]["inputs"]["samples"] = ["second", 0]
    (outcome,) = run(server, graph)
    image(server, outcome)
    assert {node_id for node_id, text in harness.told(outcome) if "less work, " in text} == {"cache", "other cache"}


def test_a_lora_and_a_batch(server):
    graph = cached(seed=70)
    graph["empty"]["inputs"]["batch_size"] = 2
    graph["lora"] = node("LoraLoaderModelOnly", model=["model", 0], lora_name="tiny-lora.safetensors",
                         strength_model=1.0)
    graph["cache"]["inputs"]["model"] = ["lora", 0]
    (outcome,) = run(server, graph)
    assert outcome.end == "execution_success" and len(outcome.images("save")) == 2


@pytest.mark.parametrize("method", ["fora", "every-n", "delta-dit", "t-gate", "first-block", "steps"])
def test_every_method_makes_an_image(server, method):
    (outcome,) = run(server, cached(method=method, seed=71))
    image(server, outcome)


def test_a_model_of_the_stock_loader_is_refused_with_one_sentence(server):
    graph = cached(seed=72)
    graph["model"] = node("UNETLoader", unet_name="sigma-1024.safetensors", weight_dtype="default")
    (outcome,) = run(server, graph)
    assert outcome.end == "execution_error"


def test_a_schedule_that_is_not_there_is_refused_before_it_runs(server):
    graph = cached(method="ecad", seed=73)
    graph["cache"]["inputs"]["schedule"] = "gone.json"
    status, answer = server.post("/prompt", {"prompt": graph})
    (error,) = answer["node_errors"]["cache"]["errors"]
    assert status == 400 and "gone.json is not in the model folder pixart_schedules" in error["details"]
