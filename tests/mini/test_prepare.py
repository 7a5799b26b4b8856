"""Prepared files hold what the trainers read, and the same whatever the order."""
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pixart.mini import Files
from pixart.mini.autoencoder import AutoencoderConfig, MiniAutoencoder, load_autoencoder, save_autoencoder
from pixart.mini.images import BUCKETS
from pixart.mini.prepare import CAPTION_TOKENS, held_out, image_of, prepare_scenes, scene_and_caption
from pixart.mini.scenes import split_of
from pixart.mini.text_encoder import (
    WIDTH,
    build_encoder,
    build_tokenizer,
    load_text_encoder,
    save_text_encoder,
    text_features,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    torch.manual_seed(0)
    files = Files(tmp_path_factory.mktemp("weights"))
    save_autoencoder(MiniAutoencoder(AutoencoderConfig((4, 4, 4, 4))), files.vae)
    tokenizer = build_tokenizer()
    save_text_encoder(files.t5, tokenizer, build_encoder(len(tokenizer)))
    return files


@pytest.fixture(scope="module")
def prepared(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepare_scenes(folder, 24, seed=3, files=files)
    return folder


def test_half_of_the_images_are_square(prepared: Path) -> None:
    counts = {path.stem: len(load_file(path)["latents"]) for path in prepared.glob("bucket-*")}
    assert counts == {"bucket-16x16": 12, "bucket-14x18": 3, "bucket-18x14": 3, "bucket-12x20": 3, "bucket-20x12": 3}


@pytest.mark.parametrize("size", BUCKETS)
def test_shapes_types_and_sizes_are_those_the_trainer_reads(prepared: Path, size: tuple[int, int]) -> None:
    height, width = size
    data = load_file(prepared / f"bucket-{height // 8}x{width // 8}.safetensors")
    count = len(data["latents"])
    assert data["latents"].shape == (count, 4, height // 8, width // 8) and data["latents"].dtype == torch.float16
    assert data["features"].shape == (count, CAPTION_TOKENS, WIDTH) and data["features"].dtype == torch.float16
    assert data["mask"].shape == (count, CAPTION_TOKENS) and data["mask"].dtype == torch.uint8
    assert not data["features"][data["mask"] == 0].any() and (data["mask"] == 0).any()
    assert torch.equal(data["size"], torch.tensor([[height, width]] * count, dtype=torch.float32))
    assert torch.allclose(data["aspect"], torch.tensor(height / width))


def test_an_example_holds_its_own_image_and_caption(prepared: Path, files: Files) -> None:
    data = load_file(prepared / "bucket-16x16.safetensors")
    scene, text = scene_and_caption(5, 3)
    latents = load_autoencoder(files.vae).encode(image_of(5, 3, "train", (128, 128))[None] / 255)
    assert torch.allclose(data["latents"][5].float(), latents[0], atol=2e-3)
    features, _ = text_features(*load_text_encoder(files.t5), [text])
    kept = data["mask"][5].bool()
    assert kept.sum() == features.shape[1] and split_of(scene) == "train"
    assert torch.allclose(data["features"][5][kept].float(), features[0], atol=5e-3)


def test_the_empty_caption_is_one_token(prepared: Path) -> None:
    null = load_file(prepared / "null.safetensors")
    assert null["features"].shape == (1, WIDTH) and null["mask"].tolist() == [1]


def test_nothing_half_written_is_left(prepared: Path) -> None:
    assert not list(prepared.glob("*.part"))


def test_held_out_scenes_are_held_out() -> None:
    pairs = held_out(50, seed=1)
    assert pairs == held_out(60, seed=1)[:50]
    assert all(split_of(scene) == "held-out" for scene, _ in pairs)


def test_too_few_examples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one each"):
        prepare_scenes(tmp_path, 2)
