"""Sampling with a PT-DiT: images that do not depend on their batch, guidance, and the command line."""
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image
from prepare.images_at_hand import tiny_vae
from pt_dit.tiny_pt_dit import TINY, model
from torch import Tensor

from pixart.__main__ import main
from pixart.files.images import read_image
from pixart.mini import SHIPPED
from pixart.pt_dit.load import save_pt_dit
from pixart.pt_dit.sample import sample_latents
from pixart.sampling.flow import euler_flow, flow_shares
from pixart.text.encoded import Encoded, save_embeddings
from pixart.text.t5 import T5Encoder
from pixart.text.tokens import PromptReport


def captions(lengths: tuple[int, ...], seed: int = 2) -> Encoded:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    reports = [PromptReport("", "", length, length, 8) for length in lengths]
    return Encoded(torch.randn(len(lengths), max(lengths), 12, generator=generator), mask, reports)


def test_an_image_does_not_depend_on_its_batch():
    network, both, null = model(), captions((5, 3)), captions((2,), 3)
    together = sample_latents(network, both, null, 64, 96, steps=3, seed=7)
    assert together.shape == (2, 4, 8, 12)
    for row in range(2):
        alone = sample_latents(network, both.one(row), null, 64, 96, steps=3, seed=7 + row)
        torch.testing.assert_close(together[row:row + 1], alone, rtol=1e-4, atol=1e-4)


def test_guidance_mixes_two_velocities_at_shifted_noise_levels():
    network, caption, null = model(), captions((5,)), captions((2,), 3)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(9))

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        cond, uncond = (network(x, t, each.context) for each in (caption, null))
        return uncond + 3 * (cond - uncond)
    want = euler_flow(velocity, noise, flow_shares(4, 128 / TINY.flow_side))
    found = sample_latents(network, caption, null, steps=4, guidance=3.0, seed=9)      # of its trained size
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)
    unguided = sample_latents(network, caption, null, steps=4, guidance=1.0, seed=9)
    want = euler_flow(lambda x, t: network(x, t, caption.context), noise, flow_shares(4))
    torch.testing.assert_close(unguided, want, rtol=1e-4, atol=1e-4)


@pytest.fixture
def words(tmp_path) -> list[str]:
    path = save_pt_dit(tmp_path / "pt-dit.safetensors", model(replace(TINY, caption_width=128, caption_tokens=200)))
    return ["pixart", "generate", "a red circle", "--model", str(path), "--vae", str(SHIPPED.vae), "--t5",
            str(SHIPPED.t5), "--bits", "16", "--out", str(tmp_path / "x.png"), "--size", "64x72", "--steps", "2",
            "--device", "cpu", "--dtype", "fp32"]


def test_generate_works_with_it(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [*words, "--count", "2", "--batch", "1", "--negative", "a blue square"])
    assert main() == 0
    told = capsys.readouterr().out.splitlines()
    assert "of 200 tokens" in told[0] and told[1:] == [str(tmp_path / "x.png"), str(tmp_path / "x-1.png")]
    images = [read_image(tmp_path / name) for name in ("x.png", "x-1.png")]
    assert all(image.shape[-2:] == (72, 64) for image in images) and not torch.equal(*images)
    with Image.open(tmp_path / "x-1.png") as image:
        told, settings = image.info["parameters"].rsplit("\n", 1)
    assert told == "a red circle\nNegative prompt: a blue square"
    assert "Sampler: flow, CFG scale: " in settings and "Seed: 1, Size: 64x72, Model: " in settings


@pytest.mark.parametrize("more, told", [
    (["--sampler", "dpm"], "--sampler dpm is for PixArt"), (["--sampler", "lcm"], "--sampler lcm is for PixArt"),
    (["--cache", "fora"], "--cache has no effect on a PT-DiT"),
    (["--image", "x.png", "--denoise", "0.5"], "--image has no effect on a PT-DiT"),
    (["--input-bits", "8"], "--input-bits has no effect"), (["--variant", "alpha-512"], "--variant has no effect"),
    (["--control", "x.png"], "--control has no effect")])
def test_options_of_pixart_are_refused(words, more, told, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [*words, *more])
    assert main() == 1
    assert told in capsys.readouterr().err


def test_prompts_that_were_encoded_before_give_the_same_guided_image(words, tmp_path, monkeypatch, capsys):
    encoder = T5Encoder(SHIPPED.t5, bits=16)
    for name, text in (("p", "a red circle"), ("n", "a blue square")):
        save_embeddings(tmp_path / f"{name}.safetensors", encoder.encode([text], 200, False))
    monkeypatch.setattr(sys, "argv", [*words, "--negative", "a blue square"])
    assert main() == 0
    before, at = (tmp_path / "x.png").read_bytes(), words.index("--t5")
    saved = [*words[:at], "--embeddings", str(tmp_path / "p.safetensors"), *words[at + 4:]]
    monkeypatch.setattr(sys, "argv", saved)
    assert main() == 1
    assert "guidance (not --guidance 1) needs a negative prompt" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*saved, "--negative-embeddings", str(tmp_path / "n.safetensors")])
    assert main() == 0
    assert (tmp_path / "x.png").read_bytes() == before


def test_a_vae_for_latents_of_another_scale_is_refused(words, tmp_path, monkeypatch, capsys):
    scale = 0.13025 if TINY.latent_scale == 0.18215 else 0.18215
    words[words.index("--vae") + 1] = str(tiny_vae(tmp_path / "vae", scale))
    monkeypatch.setattr(sys, "argv", words)
    assert main() == 1
    assert f"scales its latents by {scale}, the model pt-dit.safetensors by" in capsys.readouterr().err
