"""Every node over HTTP and websocket, alone and mixed with stock nodes, and what users read when something is wrong."""
import asyncio
import base64
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from host import harness
from PIL import Image, ImageDraw

from pixart.control.hed import HED

WORKFLOWS = harness.ROOT / "workflows" / "api"
NODES = ("PixArtPromptList", "PixArtCheck",
         "PixArtLoader", "PixArtT5Loader", "PixArtTextEncode", "PixArtSavePrompt",
         "PixArtLoadPrompt", "PixArtEmptyLatent", "PixArtReNO", "PixArtLCMSampler",
         "PixArtLCMSigmas", "PixArtDMDSampler", "PixArtSteps", "PixArtControlNetLoader", "PixArtControlNetApply",
         "PixArtSketch", "PixArtEdges", "PixArtHED", "PixArtCache", "PixArtDeltaLoraLoader", "PixArtLoraLoader",
         "PixArtTrain", "PixArtCompare", "PixArtFormerSize", "PixArtFormerSizeCondition")

# Pixels of what a workflow saves, several where it saves several; of others, see below.
SIZES = {"mini-compare": [(646, 442)], "mini-two-pass-upscale": [(256, 256)], "sigma-2k-two-pass-upscale": [(256, 256)],
         "mini-prompt-list": [(128, 128)] * 4 + [(96, 160), (160, 96)]}
TRAINING = ("accelerate", "peft")       # what ComfyUI does not bring along


def node(kind: str, **inputs: object) -> dict:
    return {"class_type": kind, "inputs": inputs}


def start(file: str = "alpha-1024.safetensors", t5: str = "tiny-t5", bits: str = "16") -> dict[str, dict]:
    """Loaders, prompt, empty latent and decoding, for a sampler with id "sampler" in between."""
    return {
        "model": node("PixArtLoader", file=file, variant="auto", weight_dtype="fp32"),
        "clip": node("PixArtT5Loader", file=t5, bits=bits, device="auto"),
        "vae": node("VAELoader", vae_name="tiny-vae.safetensors"),
        "empty": node("PixArtEmptyLatent", resolution="128", ratio="1:1", batch_size=1),
        "positive": node("PixArtTextEncode", clip=["clip", 0], text="a cat", family="auto", width=["empty", 1],
                         height=["empty", 2], model=["model", 0]),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["vae", 0]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="test"),
    }


def lcm(seed: int = 1, **changed: object) -> dict[str, dict]:
    inputs = {"model": ["model", 0], "positive": ["positive", 0], "latent": ["empty", 0], "seed": seed, "steps": 4,
              "rule": "official", "denoise": 1.0}
    return {**start(), "sampler": node("PixArtLCMSampler", **{**inputs, **changed})}


def ksampler(steps: int = 3, **changed: object) -> dict[str, dict]:
    inputs = {"model": ["model", 0], "seed": 1, "steps": steps, "cfg": 4.5, "sampler_name": "euler",
              "scheduler": "normal", "positive": ["positive", 0], "negative": ["negative", 0],
              "latent_image": ["empty", 0], "denoise": 1.0}
    return {**start(), "negative": node("CLIPTextEncode", clip=["clip", 0], text="a much longer prompt to avoid"),
            "sampler": node("KSampler", **{**inputs, **changed})}


def run(server: harness.Server, *prompts: dict, on_message: Callable[[str, dict], Any] | None = None
        ) -> list[harness.Outcome]:
    """Queue all prompts at once, then follow each to its end."""
    async def talk() -> list[harness.Outcome]:
        async with harness.Session(server) as session:
            queued = [session.queue(prompt) for prompt in prompts]
            return [await session.follow(prompt_id, on_message) for prompt_id in queued]
    return asyncio.run(talk())


def png_size(data: bytes) -> tuple[int, int]:
    assert data.startswith(b"\x89PNG")
    return struct.unpack(">II", data[16:24])


def images(server: harness.Server, outcome: harness.Outcome, name: str = "save") -> list[bytes]:
    assert outcome.end == "execution_success", f"{outcome.messages[-1]}\n{server.log[-3000:]}"
    return [server.get(f"/view?filename={entry['filename']}&subfolder={entry['subfolder']}&type={entry['type']}")
            for entry in outcome.images(name)]


def image(server: harness.Server, outcome: harness.Outcome, name: str = "save") -> bytes:
    (drawn,) = images(server, outcome, name)
    return drawn


def test_the_pack_is_imported_without_complaint(server):
    assert "IMPORT FAILED" not in server.log
    assert harness.PACK in server.log


@pytest.mark.parametrize("kind", NODES)
def test_every_node_is_offered_with_its_help(server, kind):
    info = server.get(f"/object_info/{kind}")[kind]
    assert info["category"].split("/")[0] == "PixArt" and info["description"]
    assert len(info["output_name"]) == len(info["output"]) == len(info["output_tooltips"])
    assert len(server.get(f"/extensions/{harness.PACK}/docs/{kind}.md")) > 200


def test_combos_list_the_files(server):
    files = server.get("/object_info/PixArtLoader")["PixArtLoader"]["input"]["required"]["file"][0]
    assert {"alpha-1024.safetensors", "sigma-1024.safetensors"} <= set(files)
    encoders = server.get("/object_info/PixArtT5Loader")["PixArtT5Loader"]["input"]["required"]["file"][0]
    assert {"tiny-t5", "wide-t5"} <= set(encoders)
    controls = server.get("/object_info/PixArtControlNetLoader")["PixArtControlNetLoader"]["input"]["required"]["file"]
    assert {"control.safetensors", "pixart-mini/edges.safetensors", "PixArt-ControlNet.safetensors"} <= set(controls[0])


def test_text_to_image_in_four_steps_with_previews(server):
    (outcome,) = run(server, {**lcm(), **{"clip": start(bits="8")["clip"]}})
    assert png_size(image(server, outcome)) == (128, 128)
    steps = [data["value"] for kind, data in outcome.messages if kind == "progress" and data["node"] == "sampler"]
    assert steps == [1, 2, 3, 4]
    assert len(outcome.previews) >= 4 and any(b"\xff\xd8\xff" in frame[:200] for frame in outcome.previews)


def test_t5_in_auto_says_which_bits_it_took(server):
    (outcome,) = run(server, {**lcm(seed=11), **{"clip": start(bits="auto")["clip"]}})
    assert png_size(image(server, outcome)) == (128, 128)
    assert any("are free on cpu: T5 is loaded in 16 bits" in text for text in harness.texts(outcome, "clip"))


def test_a_pt_dit_is_sampled_by_the_stock_sampler_and_refused_by_pixarts(server):
    """Over HTTP: Load PixArt, KSampler (euler, simple), VAE Decode; then the LCM sampler of PixArt."""
    graph = {**ksampler(cfg=4.0, scheduler="simple"), "model": start("pt-dit.safetensors")["model"]}
    few = {**lcm(), "model": graph["model"]}
    drawn, refused = run(server, graph, few)
    assert png_size(image(server, drawn)) == (128, 128)
    said = " | ".join(harness.texts(drawn, "model"))
    assert "PT-DiT 128" in said and "decode with the VAE of Stable Diffusion" in said
    assert refused.end == "execution_error" and "this MODEL is a PTDiT, not a PixArt model" in refused.error


def test_the_loader_says_how_its_model_is_sampled_where_the_file_or_its_name_tells(server):
    graph = lcm(seed=41)
    graph["model"]["inputs"]["file"] = "pixart-mini/teacher.safetensors"
    (outcome,) = run(server, graph)
    assert "teacher: 20 steps, cfg 2.5; decode with pixart-mini/vae" in " | ".join(harness.texts(outcome, "model"))


def test_nodes_say_on_themselves_what_they_found(server):
    """As text that the page shows on a node; binary messages of kind 3 carry it."""
    graph = lcm()
    graph["model"]["inputs"]["weight_dtype"] = "bf16"       # nothing is left of the runs before
    graph["empty"]["inputs"]["batch_size"] = 2
    graph["positive"]["inputs"]["text"] = "many words " * 200
    (outcome,) = run(server, graph)
    texts = [frame[8:].decode(errors="replace") for frame in outcome.previews if frame[:4] == b"\0\0\0\3"]
    said = " | ".join(texts)
    assert "PixArt-alpha 1024" in said and "120 of 120 tokens" in said and "words cut" in said
    assert "128 x 128 pixels" in said


def test_schedule_node_with_stock_custom_sampler(server):
    graph = {**start(), "schedule": node("PixArtLCMSigmas", model=["model", 0], steps=4, rule="official", denoise=1.0),
             "sampler": node("SamplerCustom", model=["schedule", 0], add_noise=True, noise_seed=1, cfg=1.0,
                             positive=["positive", 0], negative=["positive", 0], sampler=["schedule", 1],
                             sigmas=["schedule", 2], latent_image=["empty", 0])}
    custom, own = run(server, graph, lcm())
    assert image(server, custom) == image(server, own)


def steps(method: str, **changed: object) -> dict[str, dict]:
    """PixArt Steps with the stock SamplerCustom."""
    inputs = {"model": ["model", 0], "method": method, "steps": 0, "cfg": 0.0, "denoise": 1.0}
    return {**start(), "steps": node("PixArtSteps", **{**inputs, **changed}),
            "sampler": node("SamplerCustom", model=["steps", 0], add_noise=True, noise_seed=1, cfg=["steps", 4],
                            positive=["positive", 0], negative=["positive", 0], sampler=["steps", 1],
                            sigmas=["steps", 2], latent_image=["empty", 0])}


def test_steps_node_sets_what_each_method_needs(server):
    """LCM is that of its own sampler; TDM, one step of DMD and a teacher are images of their own."""
    graphs = [steps("lcm"), steps("tdm"), steps("dmd"), steps("teacher", steps=2), steps("auto", steps=2)]
    outcomes = run(server, *graphs, lcm())
    drawn = [image(server, outcome) for outcome in outcomes]
    assert drawn[0] == drawn[5] and len(set(drawn[:4])) == 4
    assert drawn[4] == drawn[3], "a file that says nothing is taken for a teacher"
    assert "leave steps at 0" in failed(server, steps("auto", model=["lora", 0], steps=3) | {
        "lora": node("PixArtDeltaLoraLoader", model=["model", 0], file="tiny-dmd.safetensors", strength=1.0)})


def test_one_step_dmd(server):
    graph = {**start("alpha-512.safetensors"), "sampler": node(
        "PixArtDMDSampler", model=["model", 0], positive=["positive", 0], latent=["empty", 0], seed=3)}
    (outcome,) = run(server, graph)
    assert png_size(image(server, outcome)) == (128, 128)


def test_a_saved_prompt_gives_the_same_image_without_a_text_encoder(server):
    saved = {**lcm(seed=12, positive=["kept", 0]),
             "kept": node("PixArtSavePrompt", conditioning=["positive", 0], name="a cat", text="a cat")}
    saved["positive"]["inputs"] |= {"width": 0, "height": 0}          # a saved prompt keeps no size
    (first,) = run(server, saved)
    loaded = lcm(seed=12)
    del loaded["clip"]
    loaded["positive"] = node("PixArtLoadPrompt", file="a cat.safetensors")
    (second,) = run(server, loaded)
    assert image(server, first) == image(server, second)
    assert any("numbers each: a cat" in text for text in harness.texts(second, "positive"))


def test_stock_sampler_and_prompt_nodes(server):
    (outcome,) = run(server, ksampler())
    assert png_size(image(server, outcome)) == (128, 128)


def test_stock_lora_loader_changes_the_image(server):
    graph = ksampler(model=["lora", 0])
    graph["lora"] = node("LoraLoader", model=["model", 0], clip=["clip", 0], lora_name="tiny-lora.safetensors",
                         strength_model=1.0, strength_clip=1.0)
    with_lora, without = run(server, graph, ksampler())
    assert image(server, with_lora) != image(server, without)
    assert "lora key not loaded" not in server.log


def test_stock_easycache_skips_steps(server):
    graph = ksampler(steps=12, model=["cache", 0])
    graph["cache"] = node("EasyCache", model=["model", 0], reuse_threshold=3.0, start_percent=0.0, end_percent=1.0,
                          verbose=False)
    (outcome,) = run(server, graph)
    image(server, outcome)
    (line,) = [line for line in server.log.splitlines() if "EasyCache - skipped" in line]
    assert int(line.split("skipped ")[1].split("/")[0]) > 0


def test_image_to_image_with_a_mask(server):
    graph = lcm(latent=["masked", 0], denoise=0.6)
    graph.update(colour=node("EmptyImage", width=128, height=128, batch_size=1, color=0xff8000),
                 encode=node("VAEEncode", pixels=["colour", 0], vae=["vae", 0]),
                 mask=node("SolidMask", value=1.0, width=128, height=64),
                 masked=node("SetLatentNoiseMask", samples=["encode", 0], mask=["mask", 0]))
    (outcome,) = run(server, graph)
    assert png_size(image(server, outcome)) == (128, 128)


def test_two_prompts_queued_give_two_images_in_order(server):
    first, second = run(server, lcm(seed=21), lcm(seed=22))
    assert image(server, first) != image(server, second)
    names = [outcome.images("save")[0]["filename"] for outcome in (first, second)]
    assert names == sorted(names)


def test_a_run_can_be_interrupted_and_the_next_one_works(server):
    posted = []

    def stop(kind: str, data: dict) -> None:
        if kind == "progress" and not posted:
            posted.append(server.post("/interrupt", {}))

    (outcome,) = run(server, ksampler(steps=4000), on_message=stop)
    assert outcome.end == "execution_interrupted"
    (outcome,) = run(server, lcm(seed=31))
    image(server, outcome)


def refused(server: harness.Server, graph: dict) -> dict[str, list[dict]]:
    """Errors by node id of a prompt that validation must refuse."""
    status, answer = server.post("/prompt", {"prompt": graph})
    assert status == 400, answer
    return {name: entry["errors"] for name, entry in answer["node_errors"].items()}


def test_a_missing_file_is_refused_before_it_runs(server):
    (error,) = refused(server, {**lcm(), **{"model": start("gone.safetensors")["model"]}})["model"]
    assert error["type"] == "custom_validation_failed"
    assert error["details"].startswith("file - gone.safetensors is not in the model folder diffusion_models")


def test_a_name_from_windows_loads(server):
    graph = lcm()
    graph["model"]["inputs"]["file"] = "pixart-mini\\lcm.safetensors"
    graph["clip"]["inputs"]["file"] = "pixart-mini\\t5"
    graph["vae"]["inputs"]["vae_name"] = "pixart-mini/vae.safetensors"
    (outcome,) = run(server, graph)
    assert png_size(image(server, outcome)) == (128, 128)


@pytest.mark.parametrize("value, kind", [(-3, "value_smaller_than_min"), (0, "value_smaller_than_min"),
                                         (99, "value_bigger_than_max"), ("many", "invalid_input_type")])
def test_impossible_steps_are_refused_before_it_runs(server, value, kind):
    (error,) = refused(server, lcm(steps=value))["sampler"]
    assert error["type"] == kind and "steps" in error["details"]


def test_a_wrong_wire_is_refused_before_it_runs(server):
    (error,) = refused(server, lcm(model=["empty", 0]))["sampler"]
    assert error["type"] == "return_type_mismatch" and "LATENT" in error["details"]


def failed(server: harness.Server, graph: dict) -> str:
    (outcome,) = run(server, graph)
    assert outcome.end == "execution_error", outcome.messages[-1]
    return outcome.error


@pytest.mark.parametrize("changed, finding", [
    ({"cfg": float("nan"), "negative": ["positive", 0]}, "cfg is nan; expected a number from 1.0 to 5.0"),
    ({"model": None}, "model is nothing (null); expected a MODEL"),
    ({"latent": "a text"}, "latent is the text 'a text'; expected a LATENT"),
])
def test_what_the_host_lets_through_is_one_clear_error(server, changed, finding):
    assert failed(server, lcm(**changed)).startswith(finding)


def test_a_truncated_file_is_named(server):
    assert "truncated.safetensors" in failed(server, {**lcm(), **{"model": start("truncated.safetensors")["model"]}})


def test_a_file_of_another_family_is_named(server):
    assert "Flux" in failed(server, {**lcm(), **{"model": start("flux.safetensors")["model"]}})


def test_a_text_encoder_of_another_width_is_one_clear_error(server):
    message = failed(server, {**lcm(), **{"clip": start(t5="wide-t5")["clip"]}})
    assert "128" in message and "64" in message and "text encoder" in message


def test_too_many_steps_for_the_strength_are_explained(server):
    graph = lcm(latent=["encode", 0], denoise=0.03)
    graph.update(colour=node("EmptyImage", width=128, height=128, batch_size=1, color=255),
                 encode=node("VAEEncode", pixels=["colour", 0], vae=["vae", 0]))
    assert "4 LCM steps" in failed(server, graph)


def small(graph: dict) -> dict:
    """A shipped workflow on tiny models: same nodes and links, other files, fewer pixels."""
    controlled = any(entry["class_type"] == "PixArtControlNetLoader" for entry in graph.values())
    for entry in graph.values():
        inputs = entry["inputs"]
        if entry["class_type"] == "PixArtLoader" and controlled:
            inputs.update(file="deep-1024.safetensors", variant="auto")
        elif entry["class_type"] == "PixArtControlNetLoader":
            inputs.update(file="control.safetensors")
        elif entry["class_type"] == "PixArtLoader":
            sigma = "sigma" in inputs["file"].lower()
            name = "sigma-1024" if sigma else "alpha-512" if "512" in inputs["file"] else "alpha-1024"
            inputs.update(file=f"{name}.safetensors", variant="auto")
        elif entry["class_type"] == "PixArtT5Loader":
            inputs.update(file="tiny-t5")
        elif entry["class_type"] == "VAELoader":
            inputs.update(vae_name="tiny-vae.safetensors")
        elif entry["class_type"] == "PixArtDeltaLoraLoader":
            inputs.update(file="tiny-tdm.safetensors")
        elif entry["class_type"] == "PixArtEmptyLatent":
            inputs.update(resolution="128")
        elif entry["class_type"] == "PixArtSavePrompt":
            inputs.update(name="tiny")
        elif entry["class_type"] == "PixArtLoadPrompt":
            inputs.update(file="tiny-prompt.safetensors")
        elif entry["class_type"] == "PixArtTrain":
            inputs.update(name="tiny", steps=2, batch=1, resolution="256", preview_every=2)
        elif entry["class_type"] == "PixArtReNO":
            inputs.update(iterations=2, steps=1)
    return graph


def require_packages(host: harness.Host, graph: dict) -> None:
    """Skip a workflow that trains where the host's Python was not given what that takes."""
    if any(entry["class_type"] == "PixArtTrain" for entry in graph.values()) and (lacking := host.lacks(TRAINING)):
        pytest.skip(f"the Python of ComfyUI {host.version} lacks {lacking}, which training needs: {host.python} -m pip "
                    f"install {lacking}")


def last(graph: dict) -> str:
    """The node that saves the image of a workflow; in one that saves nothing, the one that shows it."""
    ends = {kind: key for key, entry in graph.items() if (kind := entry["class_type"]) in ("SaveImage", "PreviewImage")}
    return ends.get("SaveImage") or ends["PreviewImage"]


@pytest.fixture(scope="module")
def at_hand(base):
    """What the workflows load beside models: HED weights under the published name, and the host's example image."""
    weights, example = base / "models" / "controlnet" / "ControlNetHED.pth", base / "input" / "example.png"
    torch.manual_seed(5)
    torch.save(HED().half().state_dict(), weights)
    example.parent.mkdir(exist_ok=True)
    example.write_bytes(drawing())
    yield
    weights.unlink()        # other tests are about its absence


def drawing() -> bytes:
    """A black square on white as PNG."""
    image = Image.new("RGB", (96, 64), "white")
    ImageDraw.Draw(image).rectangle((20, 10, 70, 50), outline="black", width=2)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_an_uploaded_drawing_steers_the_image(server):
    status, answer = server.upload("drawing.png", drawing())
    assert (status, answer["name"]) == (200, "drawing.png")
    graph = {**lcm(model=["model", 0], positive=["steered", 0]), **{"model": start("deep-1024.safetensors")["model"]},
             "photo": node("LoadImage", image="drawing.png"),
             "edges": node("PixArtEdges", image=["photo", 0], method="invert", low=0.4, high=0.8, blur=1.0,
                           strength=2.0, width=["empty", 1], height=["empty", 2]),
             "control": node("PixArtControlNetLoader", file="control.safetensors", weight_dtype="fp32"),
             "steered": node("PixArtControlNetApply", positive=["positive", 0], control_net=["control", 0],
                             image=["edges", 0], vae=["vae", 0], strength=1.0, start_percent=0.0, end_percent=1.0,
                             fade=0.0, blocks=0)}
    off = {**graph, "steered": {**graph["steered"], "inputs": {**graph["steered"]["inputs"], "strength": 0.0}}}
    plain = {**graph, "sampler": lcm()["sampler"]}
    steered, without, never = (image(server, outcome) for outcome in run(server, graph, off, plain))
    assert without == never and steered != without


def test_a_sketch_in_the_prompt_steers_the_image(server):
    graph = json.loads((WORKFLOWS / "mini-sketch.json").read_text(encoding="utf-8"))
    (canvas,) = [entry["inputs"] for entry in graph.values() if entry["class_type"] == "PixArtSketch"]
    drawn = [canvas["sketch"], "data:image/png;base64," + base64.b64encode(drawing()).decode(), ""]
    prompts = [json.loads(json.dumps(graph).replace(canvas["sketch"], text)) for text in drawn]
    assert len({image(server, outcome, last(graph)) for outcome in run(server, *prompts)}) == 3


@pytest.mark.parametrize("text, finding", [
    ("example.png", "the sketch is 'example.png'; expected a PNG as data:image/png;base64,..."),
    ("data:image/png;base64,AAAA", "the sketch cannot be used, it is not a PNG"),
    ("A" * 3_000_000, "the sketch is 'AAAAAAAAAAAAAAAAAAAAAAAAAAAAAA'; expected a PNG"),
])
def test_a_sketch_that_is_none_is_one_clear_error(server, text, finding):
    graph = {"sketch": node("PixArtSketch", width=128, height=128, sketch=text),
             "shown": node("PreviewImage", images=["sketch", 0])}
    assert failed(server, graph).startswith(finding)


@pytest.mark.parametrize("name", sorted(path.stem for path in WORKFLOWS.glob("*.json")))
def test_shipped_workflow_runs(server, host, at_hand, name):
    graph = small(json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")))
    require_packages(host, graph)
    (outcome,) = run(server, graph)
    assert [png_size(drawn) for drawn in images(server, outcome, last(graph))] == SIZES.get(name, [(128, 128)])


@pytest.mark.parametrize("path", sorted(WORKFLOWS.glob("mini-*.json")), ids=lambda path: path.stem)
def test_bundled_workflow_runs_as_it_is(server, host, path: Path):
    graph = json.loads(path.read_text(encoding="utf-8"))
    require_packages(host, graph)
    (outcome,) = run(server, graph)
    assert [png_size(drawn) for drawn in images(server, outcome, last(graph))] == SIZES.get(path.stem, [(128, 128)])
