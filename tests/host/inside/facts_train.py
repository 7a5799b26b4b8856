"""PixArt Train inside the host: it learns, its files work in the graph, it stops when asked, nothing stays behind."""
import functools
import gc
import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import comfy.model_management
import folder_paths
import torch
from PIL import Image
from safetensors.torch import load_file, save
from support import MODELS, condition, image, latent, load, network, node, off, pack, refusal, sample, text, vae

import nodes

NOT_DYNAMIC = ("test_a_lora_on_the_model_is_part_of_what_is_trained_on",)

NEEDS = ("accelerate", "peft")           # which ComfyUI does not bring along
OUT = Path(folder_paths.get_output_directory()) / "pixart-train"
PROMPT = "a red circle"


@functools.cache
def clip():
    return pack("nodes.host.text").load_clip(MODELS / "text_encoders" / "tiny-t5", 16, "cpu")


def wanted(**changes: object) -> dict:
    """Inputs of the node; a tiny model at 256 px."""
    given = {"method": "lora", "name": "fact", "steps": 4, "batch": 2, "learning_rate": 1e-2, "rank": 2, "blocks": 2,
             "guidance": 1.5, "edges": "canny", "resolution": "256", "save_memory": False, "start_seed": 0,
             "preview_prompt": "", "preview_every": 2}
    return {**given, **changes}


GRAPH = {"images": image(64, 64, 3), "captions": f"{PROMPT}\na blue star\na square"}


def learn(model, fresh: bool = True, **changes: object) -> dict:
    """Run the node, by default on images that were prepared before."""
    given = wanted(**changes)
    if fresh:
        forget(given["name"])
    if not {"images", "folder"} & changes.keys():
        given["folder"] = str(prepared(given["method"] == "controlnet"))
    given = {"clip": clip(), "vae": vae(), **given}
    return node("PixArtTrain")().train(model, **given)


@functools.cache
def prepared(edges: bool) -> Path:
    """What the node prepares of images in the graph."""
    method = "controlnet" if edges else "lora"
    learn(load("deep-1024"), name=f"first-{method}", method=method, steps=1, **GRAPH)
    return next((OUT / f"first-{method} ({method})").glob("data-*"))


def learned(name: str = "fact") -> bytes:
    """Everything in a LoRA file that matters: the order of a header does not."""
    return save(load_file(MODELS / "loras" / f"{name}.safetensors"))


def forget(name: str) -> None:
    for folder in (*OUT.glob(f"{name} (*"), MODELS / "loras" / f"{name}.safetensors",
                   MODELS / "controlnet" / f"{name}.safetensors"):
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink(missing_ok=True)


def state(name: str, method: str = "lora") -> dict:
    return torch.load(OUT / f"{name} ({method})" / "state.pt", weights_only=True)


def drawn(model) -> torch.Tensor:
    return sample(model, condition(text(5)), [], latent(128, 128))


# -- what comes out ----------------------------------------------------------------------------------------------------

def test_a_lora_of_images_in_the_graph_changes_the_model_as_its_file_does():
    base = load("alpha-1024")
    before = {name: tensor.clone() for name, tensor in network(base).state_dict().items()}
    model, _, _, file = learn(base)["result"]
    assert Path(file) == MODELS / "loras" / "fact.safetensors"
    again, report = node("PixArtDeltaLoraLoader")().load(base, "fact.safetensors", 1.0)
    assert "rank 2, scale 1" in report and torch.equal(drawn(model), drawn(again))
    stock = nodes.LoraLoaderModelOnly().load_lora_model_only(base, "fact.safetensors", 1.0)[0]
    assert off(drawn(stock), drawn(model)) < 1e-5
    assert off(drawn(base), drawn(model)) > 1e-3
    assert all(torch.equal(tensor, before[name]) for name, tensor in network(base).state_dict().items())


def test_what_is_trained_is_what_the_command_line_trains():
    """The same images through the library: the same weights to the bit."""
    from pixart.checkpoint.load import load as load_plain
    from pixart.train.data import PreparedFolder
    from pixart.train.jobs import lora_job
    from pixart.train.loop import train
    from pixart.train.method_settings import LoraMethod
    from pixart.train.settings import OutputSettings
    learn(load("alpha-1024"), **GRAPH)
    ours = learned()
    training, encoders = pack("nodes.host.training.session"), pack("nodes.host.bare")
    wish = pack("nodes.host.training.wish").TrainingWish(**wanted())
    data = PreparedFolder(next((OUT / "fact (lora)").glob("data-*")))
    with torch.inference_mode(False):
        plain = load_plain(MODELS / "diffusion_models" / "alpha-1024.safetensors", dtype=torch.float32,
                           attend=encoders.matmul_attention)
        job = lora_job(plain, LoraMethod(rank=2), data, OutputSettings(OUT, OUT / "plain.safetensors"), 0)
        loop = training.loop_config(wish, torch.device("cpu"), plain.config.hidden)
        job.save(train(job.model, job.objective, data, loop, OUT / "plain", cpu=True))
    assert save(load_file(OUT / "plain.safetensors")) == ours


def test_a_control_net_and_an_lcm_lora_come_out_ready_to_use():
    base = load("deep-1024")
    model, control, _, file = learn(base, method="controlnet")["result"]
    assert model is base and Path(file).parent.name == "controlnet"
    positive, _ = node("PixArtControlNetApply")().apply(condition(text(5)), control, image(128, 128), vae(), 1.0, 0.0,
                                                        1.0, 0.0, 0)
    assert off(sample(base, positive, [], latent(128, 128)), drawn(base)) > 1e-6
    assert len(control.control_model.controlnet) == 2
    model, none, _, _ = learn(base, method="lcm-lora")["result"]
    assert off(drawn(model), drawn(base)) > 1e-4
    assert "made a LoRA (lcm-lora), no ControlNet" in none.message


def test_a_folder_of_images_a_prepared_folder_and_the_graph_give_the_same():
    folder = MODELS.parent / "collection"
    folder.mkdir(exist_ok=True)
    pixels = (image(64, 64, 3) * 255).round().byte().numpy()
    for number, caption in enumerate((PROMPT, "a blue star", "a square")):
        Image.fromarray(pixels[number]).save(folder / f"{number:04d}.png")
        (folder / f"{number:04d}.txt").write_text(caption)
    weights, base = [], load("alpha-1024")
    for given in (GRAPH, {"folder": str(folder)}, {"folder": str(prepared(False)), "clip": None, "vae": None}):
        learn(base, **given)
        weights.append(learned())
    assert weights[0] == weights[1] == weights[2]


def test_a_lora_on_the_model_is_part_of_what_is_trained_on():
    base = load("alpha-1024")
    styled = nodes.LoraLoaderModelOnly().load_lora_model_only(base, "tiny-lora.safetensors", 1.0)[0]
    bare = pack("nodes.host.bare")
    with torch.inference_mode(False):
        copy = bare.bare_transformer(styled, torch.float32, 256)
    merged = network(styled)
    assert off(copy.blocks[0].attn.qkv.weight, merged.blocks[0].attn.qkv.weight) < 1e-6
    with torch.inference_mode(False):
        plain = bare.bare_transformer(base, torch.float32, 256)
    assert off(copy.blocks[0].attn.qkv.weight, plain.blocks[0].attn.qkv.weight) > 1e-3
    assert not any(parameter.is_inference() for parameter in copy.parameters())


def test_previews_are_shown_on_the_node_and_written_into_files():
    for method, name in (("lora", "alpha-1024"), ("controlnet", "deep-1024")):
        result = learn(load(name), method=method, preview_prompt=PROMPT)
        folder = OUT / f"fact ({method})" / "previews"
        assert [path.name for path in sorted(folder.iterdir())] == ["step-0000002.png", "step-0000004.png"]
        sheet = result["result"][2]
        rows = 2 if method == "controlnet" else 1           # the edges to follow stand above
        assert sheet.shape == (1, rows * 256 + 40, 256, 3) and 0 <= sheet.min() < sheet.max() <= 1
        assert result["ui"]["images"][0]["filename"] == "step-0000004.png"


# -- stopping ----------------------------------------------------------------------------------------------------------

class Stop:
    """Stops the host, as the page does, when the training has made so many steps."""

    def __init__(self, step: int) -> None:
        self.step, self.watch = step, pack("nodes.host.training.view").TrainingWatch
        self.call = self.watch.__call__

    def __enter__(self) -> None:
        def watched(watch, record, average) -> None:
            if record.step == self.step:
                comfy.model_management.interrupt_current_processing()
            self.call(watch, record, average)
        self.watch.__call__ = watched

    def __exit__(self, *_: object) -> None:
        self.watch.__call__ = self.call


def interrupted(model, step: int, **changes: object) -> None:
    try:
        with Stop(step):
            learn(model, **changes)
    except comfy.model_management.InterruptProcessingException:
        assert not comfy.model_management.processing_interrupted()
        return
    raise AssertionError("it was not interrupted")


def test_interrupted_it_keeps_the_last_step_and_goes_on_to_the_same_end():
    base = load("alpha-1024")
    learn(base)
    whole = learned()
    interrupted(base, 3)
    assert state("fact")["step"] == 3 and learned() != whole
    node("PixArtDeltaLoraLoader")().load(base, "fact.safetensors", 1.0)
    learn(base, fresh=False)
    assert state("fact")["step"] == 4 and learned() == whole


def test_it_goes_on_with_more_steps_and_refuses_other_settings():
    base = load("alpha-1024")
    learn(base)
    learn(base, fresh=False, steps=6)
    assert state("fact")["step"] == 6
    before = learned()
    assert "learning_rate was 0.01 and is now 0.5" in refusal(learn, base, fresh=False, learning_rate=0.5)
    assert "data was" in refusal(learn, base, fresh=False, images=image(64, 64, 1, seed=8), captions="x")
    assert learned() == before


def test_nothing_of_a_training_stays_in_memory():
    from accelerate.state import AcceleratorState, PartialState
    base, kind = load("alpha-1024"), pack("pixart.model.transformer").PixArtTransformer

    def bare() -> int:
        gc.collect()
        return sum(type(thing) is kind for thing in gc.get_objects())

    seed, threads, before = torch.get_rng_state(), torch.get_num_threads(), bare()
    learn(base, preview_prompt=PROMPT)
    assert bare() == before
    interrupted(base, 2)
    assert bare() == before
    refusal(learn, base, fresh=False, learning_rate=0.5)
    assert bare() == before
    assert not PartialState._shared_state and not AcceleratorState._shared_state
    assert torch.equal(torch.get_rng_state(), seed) and torch.get_num_threads() == threads
    assert torch.is_inference_mode_enabled()


# -- refusals ----------------------------------------------------------------------------------------------------------

def test_what_is_wrong_is_said_before_any_work():
    base = load("alpha-1024")
    for changes, message in (
            ({"images": None}, "connect images, or name a folder"),
            ({"folder": str(OUT), "images": image(64, 64)}, "one of the two"),
            ({"folder": "/nowhere"}, "there is no folder /nowhere"),
            ({"images": image(64, 64, 3), "captions": "one\ntwo"}, "2 captions for 3 images"),
            ({"name": "../up"}, "cannot be the name of a file"),
            ({"images": image(64, 64), "captions": "x", "vae": None}, "connect clip and vae"),
            ({**GRAPH, "vae": SimpleNamespace(latent_channels=16, encode=None)},
             "this VAE makes latents of 16 channels, PixArt's have 4"),
            ({"method": "controlnet", "edges": "hed", **GRAPH}, "Put ControlNetHED.pth")):
        forget("fact")
        assert message in refusal(learn, base, **changes), changes
    assert not (MODELS / "loras" / "fact.safetensors").exists()


def test_a_file_that_another_training_made_is_not_replaced():
    place = MODELS / "loras" / "mine.safetensors"
    place.write_bytes(b"mine")
    try:
        learn(load("alpha-1024"), fresh=False, name="mine")
    except FileExistsError as error:
        assert "choose another name" in str(error) and place.read_bytes() == b"mine"
    else:
        raise AssertionError("it was not refused")
    finally:
        place.unlink()


def test_a_text_encoder_of_another_width_is_refused():
    other = pack("nodes.host.text").load_clip(MODELS / "text_encoders" / "wide-t5", 16, "cpu")
    assert "have width 128, the model reads 64" in refusal(learn, load("alpha-1024"), clip=other, **GRAPH)


def test_missing_packages_are_named_with_the_command_that_installs_them():
    packages, real = pack("nodes.host.training.packages"), importlib.util.find_spec
    packages.importlib.util.find_spec = lambda name: None if name == "peft" else real(name)
    try:
        learn(load("alpha-1024"))
    except ImportError as error:
        assert str(error).startswith("training needs peft: pip install peft") and "-m pip install peft" in str(error)
        assert node("PixArtTrain").VALIDATE_INPUTS("lora") == "training needs: pip install peft"
        assert node("PixArtTrain").VALIDATE_INPUTS("controlnet") is True
    else:
        raise AssertionError("it was not refused")
    finally:
        packages.importlib.util.find_spec = real


def test_broken_images_are_left_out_and_named():
    folder = MODELS.parent / "broken"
    folder.mkdir(exist_ok=True)
    (folder / "bad.png").write_bytes(b"no image")
    (folder / "bad.txt").write_text("x")
    Image.new("RGB", (64, 64), "red").save(folder / "good.png")
    (folder / "good.txt").write_text(PROMPT)
    learn(load("alpha-1024"), folder=str(folder))
    (data,) = (OUT / "fact (lora)").glob("data-*")
    assert json.loads((data / "skipped.jsonl").read_text())["key"] == "bad.png"
