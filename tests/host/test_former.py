"""Workflows saved with ComfyUI_ExtraModels, opened where only this pack is installed."""
import asyncio

import pytest
from host import harness


def node(kind: str, **inputs: object) -> dict:
    return {"class_type": kind, "inputs": inputs}


def old_workflow() -> dict:
    """As that extension's readers had it, on the tiny files; KSampler and VAE are the stock ones."""
    return {
        "model": node("PixArtCheckpointLoaderSimple", ckpt_name="alpha-1024.safetensors"),
        "t5": node("T5v11Loader", t5v11_name="tiny-t5", t5v11_ver="xxl", path_type="folder", device="cpu",
                   dtype="default"),
        "size": node("PixArtResolutionSelect", model="PixArt_XL_2", ratio="0.50"),
        "positive": node("T5TextEncode", text="a cat", T5=["t5", 0]),
        "told": node("PixArtResolutionCond", cond=["positive", 0], width=["size", 0], height=["size", 1]),
        "negative": node("PixArtT5TextEncode", text="", T5=["t5", 0]),
        "empty": node("EmptyLatentImage", width=["size", 0], height=["size", 1], batch_size=1),
        "sampler": node("KSampler", model=["model", 0], seed=1, steps=1, cfg=2.0, sampler_name="euler",
                        scheduler="normal", positive=["told", 0], negative=["negative", 0],
                        latent_image=["empty", 0], denoise=1.0),
        "vae": node("VAELoader", vae_name="tiny-vae.safetensors"),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["vae", 0]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="former"),
    }


def ended(server: harness.Server, prompt: dict) -> harness.Outcome:
    async def talk() -> harness.Outcome:
        async with harness.Session(server) as session:
            return await session.follow(session.queue(prompt))
    return asyncio.run(talk())


def test_an_old_workflow_runs_to_an_image(server):
    outcome = ended(server, old_workflow())
    assert outcome.end == "execution_success", f"{outcome.messages[-1]}\n{server.log[-3000:]}"
    (image,) = outcome.images("save")
    data = server.get(f"/view?filename={image['filename']}&subfolder={image['subfolder']}&type=output")
    assert (int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")) == (352, 704)


def test_every_offer_of_the_page_names_inputs_and_outputs_that_exist(server):
    try:
        ours = server.get("/node_replacements")
    except OSError:
        pytest.skip(f"ComfyUI {server.host.version} offers no other nodes on its page")
    nodes = server.get("/object_info")
    former = {old: entry for old, entries in ours.items() for entry in entries
              if entry["new_node_id"].startswith("PixArt")}
    assert len(former) == 7 and not former.keys() & nodes.keys()
    for old, entry in former.items():
        new = nodes[entry["new_node_id"]]
        given = {each["new_id"] for each in entry["input_mapping"]}
        assert set(new["input"]["required"]) <= given, old
        assert given <= set(new["input"]["required"]) | set(new["input"].get("optional", {})), old
        assert all(each["new_idx"] < len(new["output"]) for each in entry["output_mapping"]), old


def test_a_lora_node_of_that_extension_keeps_its_file_under_the_id_both_have(server):
    prompt = {"model": node("PixArtLoader", file="alpha-1024.safetensors", variant="auto", weight_dtype="fp32"),
              "lora": node("PixArtLoraLoader", model=["model", 0], lora_name="nowhere.safetensors", strength=0.7),
              "check": node("PixArtCheck", model=["lora", 0], width=128, height=128, batch_size=1)}
    status, answer = server.post("/prompt", {"prompt": prompt})
    (error,) = answer["node_errors"]["lora"]["errors"]
    assert status == 400 and "nowhere.safetensors" in str(error) and error["type"] != "required_input_missing"
    assert "PixArtLoraLoader is read as PixArtLoraLoader with its lora_name as file" in server.log
