"""What files say of their sampling is written, read, checked and looked up in the right order."""
from dataclasses import replace
from pathlib import Path

import pytest

from pixart.sampling.preset import NOT_SAID, PRESET_METHODS, by_name, found_in, preset, preset_from_header
from pixart.sampling.samplers import SAMPLERS
from pixart.weights import CheckpointError

FILE = Path("model.safetensors")


@pytest.mark.parametrize("method", PRESET_METHODS)
def test_what_is_written_is_read(method):
    said = preset(method)
    found = preset_from_header(said.to_header(), FILE)
    assert replace(found, source=said.source) == said and "model.safetensors" in found.source
    assert said.guidance == (4.5 if method == "teacher" else 1.0)
    assert SAMPLERS[said.sampler].times(said.steps, said.rule)


def test_files_that_say_nothing():
    assert preset_from_header({"format": "pt"}, FILE) is None
    found = found_in([(FILE, {}), (Path("style.safetensors"), {})], guidance=2.5)
    assert (found.method, found.sampler, found.guidance, found.source) == ("teacher", "dpm", 2.5, NOT_SAID)


@pytest.mark.parametrize("name, method", [
    ("PixArt-LCM-XL-2-1024-MS.safetensors", "lcm"), ("PixArt-Alpha-DMD-XL-2-512x512", "dmd"), ("pixart_tdm", "tdm"),
    ("pixart-delta-1024.pth", "lcm"), ("lcm-lora.safetensors", "lcm-lora"), ("pytorch_lora_lcm", "lcm-lora"),
    ("teacher.safetensors", "teacher"), ("calcmap.pth", None),
    ("PixArt-Sigma-XL-2-1024-MS.pth", "teacher"), ("PixArt-Sigma-XL-2-2K-MS_fp16.safetensors", "teacher"),
    ("PixArt-XL-2-512x512.pth", "teacher"), ("PixArt-XL-2-SAM-256x256.pth", "teacher"),
    ("PixArt-Sigma-XL-2-1024-MS-turbo.safetensors", None), ("PixArt-XL-2-1024-ControlNet.pth", None)])
def test_names(name, method):
    found = by_name(name)
    assert (found and found.method) == method


CACHE = "hub/models--PixArt-alpha--PixArt-LCM-XL-2-1024-MS/snapshots/" + "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize("path, method", [
    ("PixArt-LCM-XL-2-1024-MS/transformer/diffusion_pytorch_model.safetensors", "lcm"),
    ("loras/PixArt-LCM-LoRA-XL-2-1024-MS/adapter_model.safetensors", "lcm-lora"),
    ("PixArt-Alpha-DMD-XL-2-512x512/transformer", "dmd"), ("PixArt-Alpha-DMD-XL-2-512x512", "dmd"),
    (f"{CACHE}/transformer/diffusion_pytorch_model.fp16.safetensors", "lcm"),
    (f"{CACHE.replace('LCM-', '')}/transformer/diffusion_pytorch_model.safetensors", "teacher"),
    ("PixArt-Sigma-XL-2-1024-MS/my-few-step-model.safetensors", None),
    ("tdm-run/checkpoint-500/pytorch_lora_weights.safetensors", "tdm"),
    ("ComfyUI-PixArt-Delta/loras/style.safetensors", None), ("lcm/style.safetensors", None),
    ("ComfyUI-PixArt-Delta/alpha/transformer/diffusion_pytorch_model.safetensors", None),
    ("model.safetensors", None), ("transformer", None), ("/model.safetensors", None)])
def test_files_of_a_repository_are_known_by_its_folder(path, method):
    """They all have the same name, and were taken for a teacher."""
    found = by_name(Path(path))
    assert (found and found.method) == method
    assert found_in([(Path(path), {})]).method == (method or "teacher")


@pytest.mark.parametrize("path", ["flash-pixart/adapter_model.safetensors", "flash_pixart.safetensors"])
def test_the_lora_of_flash_diffusion_takes_the_steps_of_diffusers(path):
    """As its model card samples: LCMScheduler, 4 steps, no guidance."""
    found = by_name(Path(path))
    assert (found.sampler, found.steps, found.guidance) == ("lcm", 4, 1.0)
    assert SAMPLERS[found.sampler].times(found.steps, found.rule) == [999, 759, 499, 259]


def test_the_last_lora_goes_before_the_checkpoint_and_a_header_before_the_name():
    tdm = replace(preset("tdm"), steps=2).to_header()
    assert found_in([(Path("lcm.safetensors"), {}), (Path("x.safetensors"), tdm)]).method == "tdm"
    assert found_in([(Path("lcm.safetensors"), tdm)]).steps == 2
    assert found_in([(Path("a.safetensors"), tdm), (Path("style.safetensors"), {})]).method == "tdm"


def test_only_another_sampler_than_the_files_is_a_mismatch():
    said = preset_from_header(preset("tdm").to_header(), FILE)
    assert said.mismatch("tdm") is None
    assert said.mismatch("lcm").startswith("made for the sampler tdm (tdm, 4 steps), but sampled with lcm")
    assert found_in([(FILE, {})]).mismatch("lcm") is None
    base = found_in([(Path("PixArt-Sigma-XL-2-1024-MS.pth"), {})])      # a blur in 4 steps without guidance
    assert "made for the sampler dpm (teacher, 20 steps), but sampled with lcm" in base.mismatch("lcm")
    assert base.mismatch("ddim") is base.mismatch("dpm") is None
    with_lora = [(Path("PixArt-XL-2-1024-MS.pth"), {}), (Path("my-lcm-lora.safetensors"), {})]
    assert found_in(with_lora).mismatch("lcm") is None


@pytest.mark.parametrize("written, message", [
    ('{"method": "turbo"}', "method is 'turbo' in pixart_sampling of its header"),
    ('{"method": "tdm", "steps": 0}', "steps is 0"), ('{"method": "tdm", "steps": 1e99}', "steps is"),
    ('{"method": "teacher", "guidance": 101}', "guidance is 101"),
    ('{"method": "teacher", "guidance": NaN}', "guidance is nan"),
    ('{"method": "dmd", "steps": 4}', "exactly 1 step"), ("[1]", "is a JSON list"), ("{", "not readable as JSON"),
    ('{"method": "tdm", "rule": "diffusers"}', "unknown TDM timestep rule")])
def test_wrong_headers_are_refused(written, message):
    with pytest.raises(CheckpointError, match=f"{message}.*File: model.safetensors"):
        preset_from_header({"pixart_sampling": written}, FILE)


def test_guidance_is_that_of_the_family_where_only_the_name_says_teacher():
    """PixArt-mini's teacher takes less than the published ones."""
    named = [(Path("teacher.safetensors"), {})]
    assert [found_in(named, guidance=2.5).guidance, found_in(named).guidance] == [2.5, 4.5]
    assert found_in([(Path("tdm.safetensors"), {})], guidance=2.5).guidance == 1.0


def test_a_header_that_says_steps_alone_is_a_teachers():
    said = preset_from_header({"pixart_sampling": '{"steps": 7}'}, FILE)
    assert replace(said, source="") == replace(preset("teacher"), steps=7, source="")


def test_lines_for_people():
    assert preset("tdm").line == "tdm: 4 steps at 899, 674, 449, 224, sampler tdm, cfg 1 (as chosen)"
    assert preset("teacher").line == "teacher: 20 steps, sampler dpm, cfg 4.5 (as chosen)"
