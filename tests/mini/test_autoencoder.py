"""The autoencoder's file computes the same function in every reader of TAESD files."""
import math
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
    training_images,
)
from pixart.mini.catalogue import SceneWish, build_catalogue
from pixart.mini.images import BUCKETS
from pixart.mini.judge import fresh_batch, load_judge
from pixart.mini.measure.accuracy import Answers, most_likely
from pixart.mini.resume import ResumableTraining
from pixart.mini.scenery import RenderedBatch, Scenery
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


class Given(torch.nn.Module):
    """Latents and decoded images that are known beforehand."""

    def __init__(self, latents: torch.Tensor, decoded: torch.Tensor) -> None:
        super().__init__()
        self.latents, self.decoded = latents, decoded

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.latents

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        assert torch.equal(latents, self.latents)           # without noise
        return self.decoded


def test_the_loss_is_the_error_and_what_keeps_latents_of_unit_variance() -> None:
    draws = torch.Generator().manual_seed(0)
    images, decoded = torch.rand(2, 2, 3, 12, 10, generator=draws, dtype=torch.float64)
    latents = 2 * torch.randn(2, 4, 3, 5, generator=draws, dtype=torch.float64) - 0.5
    error = decoded - images
    steps = (error[:, :, 1:] - error[:, :, :-1]).abs().mean() + (error[..., 1:] - error[..., :-1]).abs().mean()
    wanted = error.abs().mean() + 2 * (error ** 2).mean() + 0.5 * steps
    channels = [latents[:, channel].flatten() for channel in range(4)]
    wanted += 0.02 * sum(each.mean() ** 2 + (each.std() - 1) ** 2 for each in channels) / 4
    beyond = (latents.abs() - 3).clamp(min=0)
    assert (beyond[latents < 0] > 0).any()
    found = autoencoder_loss(Given(latents, decoded), images, noise=0.0)      # type: ignore[arg-type]
    torch.testing.assert_close(found, wanted + 0.1 * (beyond ** 2).mean(), rtol=1e-5, atol=1e-6)


def test_a_training_sees_crops_and_from_three_fifths_on_whole_images() -> None:
    scenery = Scenery(build_catalogue(SceneWish(0), 50, build_tokenizer().get_vocab()))
    assert training_images(scenery, 0, 6, 10, 8).shape == (8, 3, 64, 64)
    whole = training_images(scenery, 0, 7, 10, 8)
    assert len(whole) == 2 and tuple(whole.shape[-2:]) in BUCKETS
    assert torch.equal(training_images(scenery, 0, 7, 10, 8), whole)
    assert whole.shape != (again := training_images(scenery, 1, 7, 10, 8)).shape or not torch.equal(whole, again)


def test_the_rate_rises_and_falls_to_a_hundredth() -> None:
    weight = torch.nn.Linear(1, 1)
    progress, rates = ResumableTraining("x", weight, 0.5, 30, None), []
    for _ in progress:
        progress.advance(weight(torch.ones(1, 1)).sum())
        rates.append(progress.optimiser.param_groups[0]["lr"] / 0.5)
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0]) and rates[17] == pytest.approx(0.505)
    assert rates[29] == pytest.approx(0.01 + 0.99 * (1 - math.cos(math.pi / 26)) / 2)


class Stop(Exception):
    """Raised where a training is to be stopped."""


class BreaksAt10(Scenery):
    """Ends a training after nine steps."""

    rendered = 0

    def render(self, generator: torch.Generator, count: int) -> RenderedBatch:
        self.rendered += 1
        if self.rendered == 10:
            raise Stop
        return super().render(generator, count)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """States are written every four steps."""
    monkeypatch.setattr(ResumableTraining, "every", 4)
    monkeypatch.setattr(ResumableTraining, "saving", 0.0)


@pytest.mark.usefixtures("often")
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
    with pytest.raises(Stop):
        train_autoencoder(tmp_path / "b.safetensors", state=tmp_path / "state.pt",
                          **{**settings, "scenery": BreaksAt10(scenery.ordinary)})
    stop_and_go = train_autoencoder(tmp_path / "b.safetensors", state=tmp_path / "state.pt", **settings)
    finished = train_autoencoder(tmp_path / "c.safetensors", state=tmp_path / "state.pt", **settings)
    for name, value in straight.state_dict().items():
        assert torch.equal(stop_and_go.state_dict()[name], value), name
        assert torch.equal(finished.state_dict()[name], value), name


@pytest.mark.usefixtures("often")
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
    with pytest.raises(Stop):
        train_decoder(tmp_path / "source.safetensors", tmp_path / "b.safetensors", state=tmp_path / "state.pt",
                      **{**settings, "scenery": BreaksAt10(scenery.ordinary)})
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
