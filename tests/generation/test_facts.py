"""Images carry how they were made, in the form that viewers read, and nothing else."""
import json
import re
import sys

import pytest
import torch
from PIL import Image

from pixart import __main__ as command_line
from pixart.accelerate.pooled_values import PooledValues
from pixart.control.control_image import ControlImage
from pixart.files.images import PARAMETERS_KEY, save_image
from pixart.generation.facts import ImageFacts, image_facts_of, model_name
from pixart.generation.image_to_image import StartImage
from pixart.generation.pipeline import Pipeline
from pixart.generation.pipeline_files import PipelineFiles
from pixart.generation.request import Request
from pixart.generation.result import Images
from pixart.mini import SHIPPED
from pixart.text.encoded import load_embeddings, save_embeddings

PROMPT = "a large red circle\non a white background, é 红色 😀"
COMMON = ("--steps", "1", "--size", "32x32", "--device", "cpu")


def read(text: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt and settings, found as viewers find them: the settings are the last line."""
    words, _, last = text.rpartition("\n")
    prompt, _, negative = words.partition("\nNegative prompt: ")
    return prompt, negative, {name: json.loads(value) if value.startswith('"') else value for name, value in
                              re.findall(r'([A-Z][\w ]*): ("(?:\\.|[^"])*"|[^,]*)(?:, |$)', last)}


def parameters_in(path) -> str | None:
    """Of a PNG without its pixels, as a viewer reads it."""
    with Image.open(path) as image:
        assert set(image.info) <= {PARAMETERS_KEY}
        return image.info.get(PARAMETERS_KEY)


def comment_in(path) -> str | None:
    with Image.open(path) as image:
        comment = image.getexif().get_ifd(0x8769).get(0x9286)
    return None if comment is None else comment.removeprefix(b"UNICODE\0").decode("utf-16-be")


def run(monkeypatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["pixart", *map(str, words)])
    return command_line.main()


@pytest.mark.parametrize("name, reader", [("x.png", parameters_in), ("x.jpg", comment_in), ("x.webp", comment_in)])
@pytest.mark.parametrize("prompt", [PROMPT, "plain", "", "café"])
def test_every_character_comes_back_and_the_bytes_are_the_same_twice(name, reader, prompt, tmp_path):
    facts = ImageFacts(prompt, "blue: 蓝, or\nnot", {"Steps": "4", "Model": 'a, "b": c'})
    files = [save_image(tmp_path / f"{number}{name}", torch.zeros(3, 16, 16), facts.parameters) for number in range(2)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert reader(files[0]) == facts.parameters
    assert read(reader(files[0])) == (prompt, facts.negative, dict(facts.settings))
    assert reader(save_image(tmp_path / name, torch.zeros(3, 16, 16))) is None


def test_the_form_is_that_of_viewers():
    request = Request(("a fox", "an owl"), "blue", 64, 96, "dpm", 12, 4.5, seed=-3)
    assert [facts.parameters for facts in image_facts_of(request)] == [
        f"{prompt}\nNegative prompt: blue\nSteps: 12, Sampler: dpm, CFG scale: 4.5, Seed: {seed}, Size: 96x64"
        for prompt, seed in (("a fox", -3), ("an owl", -2))]


def test_a_negative_prompt_that_nothing_read_is_not_written():
    request = Request(("a fox",), "blue", 64, 96, "lcm", 4, 4.5)
    assert image_facts_of(request)[0].parameters == "a fox\nSteps: 4, Sampler: lcm, CFG scale: 1, Seed: 0, Size: 96x64"
    assert "Negative prompt: blue\n" in image_facts_of(request, nag=5.0)[0].parameters


def test_what_else_changes_an_image_is_written():
    files = PipelineFiles.open(None, None, None, [(SHIPPED.tdm, 0.5), (SHIPPED.dmd, 0.0)], "auto", False)
    control = ControlImage(torch.zeros(1, 1, 8, 8), 0.75, 0, 0.5)
    request = Request(("a fox",), "", 64, 64, "tdm", 4, 1.0, rule="tdm-800")
    policies = [PooledValues(files.checkpoint.config, 1)]
    settings = image_facts_of(request, files, nag=5.0, control=control, policies=policies, own_noise=True)[0].settings
    assert list(settings.items())[5:] == [
        ("Model", "pixart-mini/lcm"), ("Rule", "tdm-800"), ("NAG", "5"), ("Noise", "custom"),
        ("Policies", "PooledValues"), ("LoRA", "pixart-mini/tdm 0.5"), ("ControlNet", "pixart-mini/edges"),
        ("Control strength", "0.75"), ("Control range", "0 to 0.5")]


def test_the_image_to_begin_with_is_told_of_but_not_named():
    request = Request(("a fox",), "", 64, 96, "lcm", 4, denoise=0.5)
    start = StartImage(torch.zeros(1, 3, 64, 96), 0.5, torch.zeros(1, 1, 64, 96))
    settings = image_facts_of(request, start=start)[0].settings
    assert settings["Denoising strength"] == "0.5" and settings["Mask"] == "custom"
    bare = image_facts_of(request, start=StartImage(start.image, 0.5))[0].settings
    assert bare["Denoising strength"] == "0.5" and "Mask" not in bare
    assert "Denoising strength" not in image_facts_of(Request(("a fox",), "", 64, 96, "lcm", 4))[0].settings


@pytest.mark.parametrize("path, name", [
    ("/home/ann/PixArt-XL-2-1024-MS.pth", "PixArt-XL-2-1024-MS"),
    ("/home/ann/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model"),
    ("/home/ann/PixArt-LCM/transformer/diffusion_pytorch_model.safetensors", "PixArt-LCM"),
    ("/home/ann/models--PixArt-alpha--PixArt-XL-2-512x512/snapshots/" + "0" * 40 + "/transformer",
     "models--PixArt-alpha--PixArt-XL-2-512x512"), ("my.model-1.5", "my.model-1.5")])
def test_no_folder_but_a_published_one_is_named(path, name):
    assert model_name(path) == name


def test_a_prompt_too_long_for_a_jpeg_is_left_out_with_a_word(tmp_path, caplog):
    save_image(tmp_path / "x.jpg", torch.zeros(3, 16, 16), "word " * 10000)
    assert comment_in(tmp_path / "x.jpg") is None and "too long for the metadata of a JPEG" in caplog.text
    assert len(comment_in(save_image(tmp_path / "x.webp", torch.zeros(3, 16, 16), "word " * 10000))) == 50000


def test_half_a_surrogate_pair_does_not_keep_an_image_from_being_saved(tmp_path):
    assert parameters_in(save_image(tmp_path / "x.png", torch.zeros(3, 16, 16), "a \ud83d fox")) == "a ? fox"


def test_images_of_unknown_making_are_saved_without(tmp_path):
    assert parameters_in(Images(torch.zeros(1, 3, 16, 16), [], []).save(tmp_path / "x.png")[0]) is None


def test_generate_and_batch_write_it_and_the_option_leaves_it_out(tmp_path, monkeypatch, capsys):
    (tmp_path / "prompts.jsonl").write_text(json.dumps(PROMPT) + "\n" + json.dumps("a blue star"))
    out, folder = tmp_path / "x.png", tmp_path / "folder"
    assert run(monkeypatch, "generate", PROMPT, "--seed", 7, "--count", 2, "--out", out, *COMMON) == 0
    assert run(monkeypatch, "batch", tmp_path / "prompts.jsonl", "--seed", 7, "--out", folder, *COMMON) == 0
    told = [f"{prompt}\nSteps: 1, Sampler: lcm, CFG scale: 1, Seed: {seed}, Size: 32x32, Model: pixart-mini/lcm"
            for prompt, seed in ((PROMPT, 7), (PROMPT, 8), ("a blue star", 8))]
    files = [out, tmp_path / "x-1.png", folder / "000001-7.png", folder / "000002-8.png"]
    assert list(map(parameters_in, files)) == [told[0], told[1], told[0], told[2]]
    bare, again = tmp_path / "bare.png", ("generate", PROMPT, "--seed", 7, "--count", 2, *COMMON)
    assert run(monkeypatch, *again, "--no-metadata", "--out", bare) == 0
    assert parameters_in(bare) is None and Image.open(bare).tobytes() == Image.open(out).tobytes()
    command = ("batch", tmp_path / "prompts.jsonl", "--seed", 7, "--no-metadata", *COMMON)
    assert run(monkeypatch, *command, "--out", tmp_path / "bare") == 0
    assert parameters_in(tmp_path / "bare" / "000001-7.png") is None
    assert run(monkeypatch, *command, "--out", folder) == 1
    assert "metadata was True, is False" in capsys.readouterr().err


def test_a_saved_prompt_brings_its_text(tmp_path):
    pipe = Pipeline.open(device="cpu")
    save_embeddings(tmp_path / "p.safetensors", pipe.encode(PROMPT))
    drawn = pipe(load_embeddings(tmp_path / "p.safetensors"), steps=1, width=32, height=32)
    assert drawn.facts[0].prompt == PROMPT
    assert parameters_in(drawn.save(tmp_path / "x.png")[0]) == drawn.facts[0].parameters
    assert parameters_in(drawn.save(tmp_path / "x.png", metadata=False)[0]) is None


def test_reno_writes_it_into_both_images(tmp_path, monkeypatch):
    prompt = "a large red circle in the centre on a white background"        # the judge only reads such sentences
    words = ("reno", prompt, "--iterations", 1, "--seed", 5, *COMMON, "--size", "128x128")
    assert run(monkeypatch, *words, "--out", tmp_path / "x.png") == 0
    start = f"{prompt}\nSteps: 1, Sampler: lcm, CFG scale: 1, Seed: 5, Size: 128x128, Model: pixart-mini/lcm"
    assert parameters_in(tmp_path / "x-start.png") == start
    assert parameters_in(tmp_path / "x.png") == f"{start}, Noise: custom"
    assert run(monkeypatch, *words, "--no-metadata", "--out", tmp_path / "y.png") == 0
    assert parameters_in(tmp_path / "y.png") is parameters_in(tmp_path / "y-start.png") is None
