"""What is written for diffusers computes there what it computes here, and comes back unchanged."""
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pixart.checkpoint import load
from pixart.checkpoint.save_diffusers import save_diffusers
from pixart.config import KVCompression, PixArtConfig
from pixart.model.to_flexdit import to_flexdit
from pixart.model.transformer import PixArtTransformer

ALPHA = PixArtConfig(depth=2, hidden=48, heads=4, caption_width=20, caption_tokens=7, base_size=8, position_scale=1.0)
SIGMA = replace(ALPHA, micro_conditioning=False, latent_space="sdxl", position_scale=0.5)


def random_model(config: PixArtConfig) -> PixArtTransformer:
    torch.manual_seed(0)
    model = PixArtTransformer(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.2)
    return model


@pytest.mark.parametrize("config", [ALPHA, SIGMA], ids=["alpha", "sigma"])
def test_diffusers_loads_the_folder_and_agrees(config, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    ours = random_model(config)
    theirs = diffusers.PixArtTransformer2DModel.from_pretrained(save_diffusers(tmp_path / "out", ours)).eval()
    x, t = torch.randn(2, 4, 12, 20), torch.tensor([999.0, 17.0])
    text, size = torch.randn(2, 7, 20), torch.tensor([[96.0, 160.0]] * 2)
    added = {"resolution": size, "aspect_ratio": size[:, :1] / size[:, 1:]} if config.micro_conditioning else {
        "resolution": None, "aspect_ratio": None}
    with torch.no_grad():
        want = theirs(x, text, t, added_cond_kwargs=added).sample
        got = ours(x, t, text, None, size, size[:, 0] / size[:, 1], learned_variance=True)
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize("config", [ALPHA, SIGMA], ids=["alpha", "sigma"])
def test_it_comes_back_with_its_configuration(config, tmp_path):
    ours = random_model(config)
    again = load(save_diffusers(tmp_path / "out", ours))
    assert again.config == config
    for (name, a), b in zip(ours.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_folder_that_is_there_is_replaced_file_by_file(tmp_path: Path):
    model = random_model(ALPHA)
    save_diffusers(tmp_path, model)
    model.blocks[0].mlp.fc1.weight.zero_()
    save_diffusers(tmp_path, model, dtype=torch.float16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert json.loads((tmp_path / "config.json").read_text())["num_layers"] == 2
    assert not load(tmp_path).blocks[0].mlp.fc1.weight.any()


@pytest.mark.parametrize("change", [{"qk_norm": True}, {"kv_compression": KVCompression("conv", 2, (1,))}], ids=str)
def test_what_diffusers_cannot_hold_is_refused(change, tmp_path):
    with pytest.raises(ValueError, match="diffusers has no place.*reference layout"):
        save_diffusers(tmp_path / "out", random_model(replace(ALPHA, **change)))
    assert not (tmp_path / "out").exists()


def test_a_flexdit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="diffusers has no place for FlexDiT.*reference layout"):
        save_diffusers(tmp_path / "out", to_flexdit(random_model(replace(ALPHA, depth=8))))
    assert not (tmp_path / "out").exists()
