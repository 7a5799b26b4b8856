"""Files in the layout of GSAI-ML/DiT-muP load as standard models with the same outputs; no other file is touched."""
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoint.samples import equal, reference
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from pixart.checkpoint import CheckpointError, load, read_checkpoint, read_config, save_checkpoint, to_diffusers
from pixart.checkpoint.mup import READOUT
from pixart.config import VARIANTS, PixArtConfig
from pixart.model.transformer import PixArtTransformer

CONFIG = replace(VARIANTS["alpha-256"], depth=1, hidden=576, heads=8, caption_width=16)      # m = 2
NESTS = {"state_dict": lambda weights: {"state_dict": weights, "epoch": 30, "step": 1},
         "both": lambda weights: {"state_dict": weights, "state_dict_ema": reference(CONFIG, 9)},
         "ema alone": lambda weights: {"state_dict_ema": weights}}


class Readout(nn.Module):
    """The last layer of the published model: its input is divided by m."""

    def __init__(self, linear: nn.Linear, multiplier: float) -> None:
        super().__init__()
        self.linear, self.multiplier = linear, multiplier

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x / self.multiplier, self.linear.weight, self.linear.bias)


def published(folder: Path, name: str = "PixArt-alpha-muP.pth", config: PixArtConfig = CONFIG) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": reference(config)}, path)
    return path


def folded(weights: dict[str, Tensor], by: float) -> dict[str, Tensor]:
    return {name: tensor / by if name == READOUT else tensor for name, tensor in weights.items() if name != "pos_embed"}


@pytest.mark.parametrize("nest", NESTS)
def test_published_files_are_told_by_their_name_and_folded(nest: str, tmp_path: Path,
                                                           caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "PixArt-alpha-muP.pth"
    torch.save(NESTS[nest](reference(CONFIG)), path)
    with caplog.at_level(logging.WARNING):
        checkpoint = read_checkpoint(path)
    assert equal(checkpoint.state_dict, folded(reference(CONFIG), 2))
    assert checkpoint.config == CONFIG and checkpoint.guessed
    assert "muP readout divided by 2" in checkpoint.description and "alpha-256-mup" in caplog.text


def test_averaged_weights_beside_are_folded_too(tmp_path: Path) -> None:
    path = tmp_path / "PixArt-alpha-muP.pth"
    torch.save(NESTS["both"](reference(CONFIG)), path)
    assert equal(read_checkpoint(path, ema=True).state_dict, folded(reference(CONFIG, 9), 2))


@pytest.mark.parametrize("name", ["models--GSAI-ML--DiT-muP/snapshots/0a1b/pixart.pth", "pixart_mup_256.pth",
                                  "PixArt-\u03bcP.pth", "PixArt-\u00b5P.pth"])
def test_other_names_of_published_files(name: str, tmp_path: Path) -> None:
    assert equal(read_checkpoint(published(tmp_path, name)).state_dict, folded(reference(CONFIG), 2))


def test_without_a_position_table_the_name_says_256_px(tmp_path: Path) -> None:
    torch.save(reference(CONFIG, positions=False), tmp_path / "PixArt-alpha-muP.pth")
    checkpoint = read_checkpoint(tmp_path / "PixArt-alpha-muP.pth")
    assert checkpoint.config == CONFIG and equal(checkpoint.state_dict, folded(reference(CONFIG), 2))


@pytest.mark.parametrize("layout", ["reference", "diffusers"])
def test_the_variant_folds_whatever_the_name(layout: str, tmp_path: Path) -> None:
    weights = reference(CONFIG, positions=False)
    tensors = to_diffusers(weights, null_caption=True) if layout == "diffusers" else weights
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    checkpoint = read_checkpoint(tmp_path / "model.safetensors", "alpha-256-mup")
    assert equal(checkpoint.state_dict, folded(weights, 2)) and checkpoint.config == CONFIG
    assert not checkpoint.guessed


def test_under_the_names_of_diffusers_a_name_is_not_enough(tmp_path: Path) -> None:
    """Whoever converted it may have folded it."""
    weights = reference(CONFIG, positions=False)
    save_file({name: tensor.contiguous() for name, tensor in to_diffusers(weights, null_caption=True).items()},
              tmp_path / "PixArt-alpha-muP.safetensors")
    assert equal(read_checkpoint(tmp_path / "PixArt-alpha-muP.safetensors").state_dict, weights)


def test_the_standard_variant_does_not_fold_whatever_the_name(tmp_path: Path) -> None:
    for variant in ("alpha-256", CONFIG):
        checkpoint = read_checkpoint(published(tmp_path), variant)
        assert equal(checkpoint.state_dict, folded(reference(CONFIG), 1)) and not checkpoint.guessed
        assert "muP" not in checkpoint.description


@pytest.mark.parametrize("name, config", [
    ("PixArt-XL-2-256x256.pth", CONFIG),
    ("mupdate.pth", CONFIG),
    ("mup-runs/PixArt-XL-2-256x256.pth", CONFIG),
    ("sigma-mup.pth", replace(CONFIG, position_scale=0.5, caption_tokens=300, latent_space="sdxl")),
    ("alpha-1024-mup.pth", replace(VARIANTS["alpha-1024"], depth=1, hidden=576, heads=8, caption_width=16)),
])
def test_other_files_are_left_alone(name: str, config: PixArtConfig, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(published(tmp_path, name, config))
    assert equal(checkpoint.state_dict, folded(reference(config), 1)) and not checkpoint.guessed


def test_the_base_width_needs_no_folding(tmp_path: Path) -> None:
    config = replace(CONFIG, hidden=288, heads=4)
    checkpoint = read_checkpoint(published(tmp_path, config=config))
    assert equal(checkpoint.state_dict, folded(reference(config), 1)) and "muP" not in checkpoint.description


def test_folded_files_are_saved_standard_and_never_folded_again(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(published(tmp_path))
    again = save_checkpoint(tmp_path / "mine-muP.safetensors", checkpoint.state_dict, checkpoint.config)
    assert equal(read_checkpoint(again).state_dict, checkpoint.state_dict)
    with pytest.raises(CheckpointError, match="alpha-256-mup was chosen for a file that this package wrote.*auto"):
        read_checkpoint(again, "alpha-256-mup")
    assert read_config(published(tmp_path)) == CONFIG


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_outputs_are_those_of_the_multiplier(dtype: torch.dtype | None, tmp_path: Path) -> None:
    """m is 2 here and 4 in the published file: dividing by it loses no bit in any floating type."""
    path, generator = published(tmp_path), torch.Generator().manual_seed(0)
    explicit = PixArtTransformer(CONFIG).eval()
    plain = {name: tensor for name, tensor in reference(CONFIG).items() if name != "pos_embed"}
    explicit.load_state_dict({name: tensor * 0.05 if name != READOUT else tensor for name, tensor in plain.items()})
    torch.save({"state_dict": {**explicit.state_dict(), "pos_embed": reference(CONFIG)["pos_embed"]}}, path)
    explicit.final_layer.linear = Readout(explicit.final_layer.linear, 2)
    if dtype is not None:
        for name, parameter in explicit.named_parameters():
            if "table" not in name:
                parameter.data = parameter.data.to(dtype)
    given = [torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([10.0, 900.0]),
             torch.randn(2, 5, 16, generator=generator)]
    given = [given[0].to(dtype), given[1], given[2].to(dtype)] if dtype else given
    with torch.no_grad():
        assert torch.equal(load(path, dtype=dtype)(*given), explicit(*given))
