"""The VAE goes through the same checked reader as every other network."""
import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from host.tiny import write_vae
from safetensors.torch import load_file, save_file

from pixart.generation.pipeline import Pipeline
from pixart.mini import SHIPPED
from pixart.prepare.families import FAMILIES
from pixart.prepare.network_files import from_files
from pixart.vae import is_tiny, load_vae
from pixart.weights import CheckpointError, CheckpointNotFound

pytest.importorskip("diffusers")


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_vae(path)
    assert path.name in str(caught.value)
    return str(caught.value)


def test_a_small_autoencoder_loads_from_either_container(tmp_path):
    path = write_vae(tmp_path / "vae.safetensors")
    torch.save(load_file(path), tmp_path / "vae.pth")
    one, two = load_vae(path), load_vae(tmp_path / "vae.pth")
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_numbers_that_are_not_finite_are_found_by_their_tensor(tmp_path):
    path = write_vae(tmp_path / "vae.safetensors")
    tensors = load_file(path)
    tensors["taesd_decoder.19.bias"][1] = float("nan")
    save_file(tensors, path)
    assert "taesd_decoder.19.bias holds numbers that are not finite" in refusal(path)


def test_damaged_missing_and_other_files_are_named(tmp_path):
    path = write_vae(tmp_path / "vae.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    assert "truncated safetensors" in refusal(path)
    save_file({"a": torch.zeros(2)}, path)
    assert "holds no VAE" in refusal(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointNotFound, match=r"no weights in this folder.*diffusion_pytorch_model\.safetensors"):
        load_vae(tmp_path / "empty")


def small_vae(folder: Path) -> Path:
    """A full autoencoder of one block, as diffusers keeps it."""
    from diffusers import AutoencoderKL
    torch.manual_seed(0)
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=2, down_block_types=("DownEncoderBlock2D",),
                  up_block_types=("UpDecoderBlock2D",), layers_per_block=1).save_pretrained(folder)
    return folder


def test_a_folder_with_half_precision_alone_loads(tmp_path):
    """As diffusers downloads it with variant="fp16"."""
    from diffusers import AutoencoderKL
    plain = load_vae(small_vae(tmp_path / "plain"))
    AutoencoderKL.from_pretrained(tmp_path / "plain").half().save_pretrained(tmp_path / "half", variant="fp16")
    assert not (tmp_path / "half" / "diffusion_pytorch_model.safetensors").exists()
    half = load_vae(tmp_path / "half").state_dict()
    assert all(torch.equal(half[name], tensor.half().float()) for name, tensor in plain.state_dict().items())


def test_a_folder_of_a_tiny_autoencoder_loads_as_its_single_file(tmp_path):
    single = load_vae(write_vae(tmp_path / "vae.safetensors"))
    single.save_pretrained(tmp_path / "tiny")
    again = load_vae(tmp_path / "tiny")
    assert is_tiny(again)
    told = refusal(tmp_path / "tiny" / "diffusion_pytorch_model.safetensors")
    assert "a tiny autoencoder (TAESD) as diffusers stores it" in told and "Name its folder" in told
    kept = single.state_dict()
    assert all(torch.equal(kept.pop(name), tensor) for name, tensor in again.state_dict().items()) and not kept


@pytest.mark.parametrize("changed, says", [
    ({"block_out_channels": [2 ** 24]}, "block_out_channels is a list of 1"),
    ({"layers_per_block": 10 ** 6}, "layers_per_block is 1000000"),
    ({"norm_num_groups": 0}, "norm_num_groups is 0"), ({"block_out_channels": []}, "this VAE cannot be used"),
    ({"down_block_types": [5]}, "down_block_types is a list"),
    ({"scaling_factor": float("nan")}, "scaling_factor is nan"),
    ({"in_channels": -3}, "in_channels is -3"), ({"act_fn": "evil"}, "this VAE cannot be used")])
def test_a_folder_whose_configuration_is_wrong_is_refused_by_field(tmp_path, changed, says):
    config = small_vae(tmp_path / "vae") / "config.json"
    load_vae(tmp_path / "vae")
    config.write_text(json.dumps({**json.loads(config.read_text()), **changed}))
    with pytest.raises(ValueError) as caught:
        load_vae(tmp_path / "vae")
    said = str(caught.value)
    assert says in said and str(tmp_path / "vae") in said and "\n" not in said


@pytest.mark.parametrize("made, says", [
    (lambda tensor: tensor.to(torch.int8), "decoder.conv_in.weight holds int8 numbers"),
    (lambda tensor: torch.full_like(tensor, 1e300, dtype=torch.float64), "too large for float32"),
    (lambda tensor: tensor.to(torch.complex64), "complex64 numbers"),
    (lambda tensor: tensor[:3], "decoder.conv_in.weight"),
    (None, "1 tensors are missing, the first is decoder.conv_in.weight")])
def test_a_folder_with_a_wrong_tensor_is_refused_by_its_name(tmp_path, made, says):
    path = small_vae(tmp_path / "vae") / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    wrong = tensors.pop("decoder.conv_in.weight")
    save_file(tensors if made is None else {**tensors, "decoder.conv_in.weight": made(wrong).contiguous()}, path,
              {"format": "pt"})
    with pytest.raises(ValueError) as caught:
        load_vae(tmp_path / "vae")
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("said, refused", [
    ({"scaling_factor": 0.13025}, True), ({"scaling_factor": 1}, True), ({"scaling_factor": 0.18215}, False),
    ({"scaling_factor": None}, False), ({"scaling_factor": 0.13025, "_class_name": "AutoencoderTiny"}, False)])
def test_a_folder_for_latents_of_another_scale_is_refused_when_a_pipeline_is_opened(tmp_path, said, refused):
    """The VAE of Sigma decoded images of alpha in wrong colours, and the other way round, without a word."""
    config = small_vae(tmp_path / "pipeline" / "vae") / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **said}))
    with nullcontext() if not refused else pytest.raises(CheckpointError) as caught:
        Pipeline.open(SHIPPED.student, tmp_path / "pipeline", SHIPPED.t5, device="cpu", bits=16)
    if refused:
        told = str(caught.value)
        assert f"scales its latents by {said['scaling_factor']}, the model lcm.safetensors by 0.18215" in told
        assert "Expected sd-vae-ft-ema for alpha and delta, the SDXL VAE for Sigma" in told
        assert str(config.parent) in told


def test_a_folder_that_says_nothing_of_its_scale_fits_every_family_and_one_that_does_its_own(tmp_path):
    config = small_vae(tmp_path / "vae") / "config.json"
    with pytest.raises(CheckpointError, match=r"by 0\.18215, the sigma family by 0\.13025"):
        from_files(tmp_path / "vae", None, 16, FAMILIES["sigma"], "cpu")
    values = json.loads(config.read_text())
    del values["scaling_factor"]
    config.write_text(json.dumps(values))
    assert from_files(tmp_path / "vae", None, 16, FAMILIES["sigma"], "cpu").images().scale == 0.13025
