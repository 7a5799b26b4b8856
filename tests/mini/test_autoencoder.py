"""The autoencoder's file computes the same function in every reader of TAESD files."""
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pixart.config import LATENT_SCALE
from pixart.mini import SHIPPED
from pixart.mini.autoencoder import (
    AutoencoderConfig,
    MiniAutoencoder,
    autoencoder_loss,
    crops,
    load_autoencoder,
    padded_state,
    save_autoencoder,
    train_autoencoder,
    train_decoder,
)
from pixart.mini.catalogue import SceneWish, build_catalogue
from pixart.mini.judge import fresh_batch, load_judge
from pixart.mini.measure.accuracy import Answers, most_likely
from pixart.mini.scenery import Scenery
from pixart.mini.text_encoder import build_tokenizer

SMALL = AutoencoderConfig((4, 6, 8, 8), (0, 1, 2, 3), (1, 1, 2, 3))


@pytest.fixture
def model() -> MiniAutoencoder:
    torch.manual_seed(0)
    return MiniAutoencoder(SMALL).eval()


def in_diffusers(state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """diffusers' AutoencoderTiny with the weights of a TAESD single file."""
    from diffusers import AutoencoderTiny

    other = AutoencoderTiny().eval()
    renamed = {}
    for name, value in state.items():
        part, index, rest = name.split(".", 2)
        half, shift = ("encoder", 0) if part == "taesd_encoder" else ("decoder", -1)    # its clamp is no layer
        renamed[f"{half}.layers.{int(index) + shift}.{rest}"] = value
    other.load_state_dict(renamed, strict=True)
    return other


@torch.no_grad()
def test_padding_to_width_64_computes_the_same_as_diffusers(model: MiniAutoencoder) -> None:
    other = in_diffusers(padded_state(model))
    images = torch.rand(2, 3, 64, 48)
    latents = model.encode(images)
    assert torch.allclose(other.encode(images * 2 - 1).latents, latents, atol=1e-5)
    assert torch.allclose(other.decode(latents).sample / 2 + 0.5, model.decode(latents), atol=1e-5)


def test_a_written_file_reads_back_without_padding(model: MiniAutoencoder, tmp_path: Path) -> None:
    save_autoencoder(model, tmp_path / "vae.safetensors")
    again = load_autoencoder(tmp_path / "vae.safetensors")
    assert again.plan == SMALL
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.half().float()), name


def test_the_file_tells_hosts_the_scale(model: MiniAutoencoder, tmp_path: Path) -> None:
    save_autoencoder(model, tmp_path / "vae.safetensors")
    state = load_file(tmp_path / "vae.safetensors")
    assert state.pop("vae_scale").item() == pytest.approx(LATENT_SCALE["sd"])
    assert state.pop("vae_shift").item() == 0
    assert state["taesd_decoder.1.weight"].shape == (64, 4, 3, 3)
    assert {name.split(".")[0] for name in state} == {"taesd_encoder", "taesd_decoder"}


def test_a_foreign_taesd_file_is_refused(tmp_path: Path) -> None:
    save_file({"taesd_decoder.1.weight": torch.zeros(64, 4, 3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="has no plan"):
        load_autoencoder(tmp_path / "other.safetensors")


def test_training_lowers_the_loss_and_going_on_changes_nothing(tmp_path: Path) -> None:
    def loss(model: MiniAutoencoder) -> float:
        torch.manual_seed(0)
        return autoencoder_loss(model, fresh_batch(0, 4, "loss")[1]).item()

    scenery = Scenery(build_catalogue(SceneWish(0), 50, build_tokenizer().get_vocab()))
    settings = {"scenery": scenery, "steps": 12, "batch": 4, "plan": SMALL}
    torch.manual_seed(0)
    before = loss(MiniAutoencoder(SMALL))
    straight = train_autoencoder(tmp_path / "a.safetensors", **settings)
    assert loss(straight) < before
    stop_and_go = train_autoencoder(tmp_path / "b.safetensors", state=tmp_path / "state.pt", **settings)
    finished = train_autoencoder(tmp_path / "c.safetensors", state=tmp_path / "state.pt", **settings)
    for name, value in straight.state_dict().items():
        assert torch.equal(stop_and_go.state_dict()[name], value), name
        assert torch.equal(finished.state_dict()[name], value), name


def test_a_decoder_trains_further_on_the_same_latents(model: MiniAutoencoder, tmp_path: Path) -> None:
    save_autoencoder(model, tmp_path / "source.safetensors")
    before = load_autoencoder(tmp_path / "source.safetensors")
    scenery = Scenery(build_catalogue(SceneWish(0), 50, build_tokenizer().get_vocab()))
    settings = {"scenery": scenery, "steps": 12, "batch": 4}
    after = train_decoder(tmp_path / "source.safetensors", tmp_path / "a.safetensors", **settings)
    images = fresh_batch(0, 8, "decoder")[1]
    with torch.no_grad():
        latents = after.encode(images)
        assert torch.equal(latents, before.encode(images))
        errors = [(each.decode(latents) - images).square().mean() for each in (after, before)]
    assert errors[0] < errors[1]
    stop_and_go = train_decoder(tmp_path / "source.safetensors", tmp_path / "b.safetensors",
                                state=tmp_path / "state.pt", **settings)
    again = train_decoder(tmp_path / "source.safetensors", tmp_path / "c.safetensors", state=tmp_path / "state.pt",
                          **settings)
    for name, value in after.state_dict().items():
        assert torch.equal(stop_and_go.state_dict()[name], value), name
        assert torch.equal(again.state_dict()[name], value), name


def test_crops_are_parts_of_the_images_that_hold_something() -> None:
    torch.manual_seed(0)
    images = torch.zeros(8, 3, 96, 160)
    images[:, :, 40:56, 72:88] = torch.rand(8, 3, 16, 16)
    cut = crops(images)
    assert cut.shape == (8, 3, 64, 64)
    for image, part in zip(images, cut):
        places = image.unfold(1, 64, 1).unfold(2, 64, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
        assert (places == part).flatten(1).all(1).any()
    assert (cut.flatten(1).amax(1) > 0).float().mean() > 0.7


@torch.no_grad()
def test_the_shipped_autoencoder_keeps_images_and_unit_latents() -> None:
    model = load_autoencoder(SHIPPED.vae)
    images = fresh_batch(0, 40, "shipped")[1]
    latents = model.encode(images)
    error = (model.decode(latents).clamp(0, 1) - images).square().mean()
    assert -10 * error.log10() > 26, "peak signal to noise ratio in dB"
    flat = latents.transpose(0, 1).flatten(1)
    assert flat.mean(1).abs().max() < 0.6 and 0.5 < flat.std(1).min() < flat.std(1).max() < 1.5


@torch.no_grad()
def test_the_judge_reads_the_shipped_autoencoders_images_as_well_as_the_originals() -> None:
    model, judge = load_autoencoder(SHIPPED.vae), load_judge(SHIPPED.judge)
    scenes, choices = [], []
    for step in range(5):
        shown, images = fresh_batch(step, 20, "decoded")
        scenes += shown
        choices.append(most_likely(judge, model.decode(model.encode(images)).clamp(0, 1)))
    assert Answers.of(scenes, torch.cat(choices)).shares()["all"] > 0.985
