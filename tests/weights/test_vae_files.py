"""The VAE goes through the same checked reader as every other network."""
from pathlib import Path

import pytest
import torch
from host.tiny import write_vae
from safetensors.torch import load_file, save_file

from pixart.vae import load_vae
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
