"""ReNO on PixArt-mini: gradients through sampler and VAE, the same image from the saved noise, the command."""
import json
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image

from pixart import __main__ as command_line
from pixart.config import PixArtConfig
from pixart.generation.pipeline import Pipeline
from pixart.generation.request import Request
from pixart.generation.sample import sample
from pixart.mini import SHIPPED
from pixart.model.transformer import PixArtTransformer
from pixart.reward.generator import Generator, Recomputed, recomputed
from pixart.reward.optimise import NoiseRecipe
from pixart.reward.record import load_noise, save_noise
from pixart.reward.reno import reno
from pixart.reward.table import RewardChoice, open_rewards
from pixart.text.encoded import Encoded
from pixart.text.tokens import PromptReport
from pixart.vae import _KL, decode, decoder, load_vae

CONFIG = PixArtConfig(depth=2, hidden=48, heads=2, caption_width=16, caption_tokens=20, base_size=4, position_scale=1.0)
PROMPT = "a large striped green star on the left on a sand background"


def random_transformer(dtype=torch.float32):
    torch.manual_seed(0)
    model = PixArtTransformer(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.to(dtype).eval().requires_grad_(False)


def caption(count=1):
    context = torch.randn(count, 5, 16, generator=torch.Generator().manual_seed(3))
    return Encoded(context, torch.ones(count, 5, dtype=torch.bool), [PromptReport("x", "x", 5, 5, 20)] * count)


def request(sampler="lcm", steps=2, count=1, **named):
    return Request(("x",) * count, height=32, width=48, sampler=sampler, steps=steps, seed=4, **named)


@pytest.fixture(scope="module")
def vae():
    """The architecture of Stable Diffusion's VAE, narrow, with random weights."""
    from diffusers import AutoencoderKL
    torch.manual_seed(0)
    narrow = AutoencoderKL(**_KL | {"block_out_channels": [8, 8, 8, 8], "norm_num_groups": 4, "layers_per_block": 1})
    return narrow.eval().requires_grad_(False)


@pytest.mark.parametrize("sampler, steps", [("lcm", 1), ("lcm", 3), ("dmd", 1)])
def test_it_makes_bit_for_bit_what_the_sampler_makes(vae, sampler, steps):
    model, asked = random_transformer(), request(sampler, steps, count=2)
    generate = Generator(model, decoder(vae, CONFIG.latent_scale), asked, caption(2))
    latents = sample(model, asked, caption(2), caption(1))
    assert torch.equal(generate.latents(generate.start), latents)
    assert torch.equal(generate(generate.start), decode(vae, latents, CONFIG.latent_scale).clone())
    other = generate.start.flip(0)
    assert torch.equal(generate.latents(other), sample(model, asked, caption(2), caption(1), start=other))


def test_recomputing_changes_nothing_but_memory(vae):
    model = random_transformer()
    generate = Generator(model, decoder(vae, CONFIG.latent_scale), request(), caption())

    def gradient():
        start = generate.start.clone().requires_grad_()
        images = generate(start)
        return images, torch.autograd.grad(images.sum(), start)[0]
    plain = gradient()
    with recomputed(model, vae):
        wrapped = [module for module in vae.modules() if isinstance(module, Recomputed)]
        again = gradient()
    assert len(wrapped) > 5 and model.recompute is False
    assert not any(isinstance(module, Recomputed) for module in vae.modules())
    assert torch.equal(plain[0], again[0]) and torch.allclose(plain[1], again[1], rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for network in (model, vae) for parameter in network.parameters())


@pytest.mark.parametrize("sampler, steps", [("lcm", 2), ("dmd", 1)])
def test_the_gradient_is_that_of_finite_differences(sampler, steps):
    model = random_transformer(torch.float64)
    generate = Generator(model, lambda latents: latents[:, :3], request(sampler, steps), caption())
    model.forward = lambda x, t, *given, call=model.forward, **named: Wide(call(x.double(), t, *given, **named))
    generate.later = [each.double() for each in generate.later]
    start = generate.start.double().requires_grad_()
    way = torch.randn(start.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (slope,) = torch.autograd.grad(generate(start).square().sum(), start)
    with torch.no_grad():
        ahead, behind = (generate(start + sign * 1e-5 * way).square().sum() for sign in (1, -1))
    assert ((slope * way).sum() - (ahead - behind) / 2e-5).abs() < 1e-4 * slope.norm() * way.norm()


class Wide(torch.Tensor):
    """Stays float64 where the sampler asks for float32."""

    @staticmethod
    def __new__(cls, value):
        return value.as_subclass(cls)

    def float(self):
        return self.as_subclass(torch.Tensor)


@pytest.mark.parametrize("asked, message", [(request("dpm", 20), "sampler dpm cannot be optimised through"),
                                            (request("lcm", 10), "sampler lcm in 10 steps cannot be")])
def test_a_sampler_of_too_many_passes_is_refused_by_name(asked, message):
    with pytest.raises(ValueError, match=message):
        Generator(random_transformer(), lambda latents: latents, asked, caption())


def test_mini_gains_and_its_best_noise_gives_its_best_image():
    pipe = Pipeline.open(device="cpu", dtype=torch.float32)
    reward = open_rewards([RewardChoice("judge")])
    found = reno(pipe, PROMPT, reward, NoiseRecipe(iterations=4), steps=2, seed=3)
    assert found.total.item() > found.history[0].total[0] and found.images.shape == (1, 3, 128, 128)
    again = pipe(PROMPT, steps=2, seed=3, noise=found.noise)
    assert torch.equal(again.pixels, found.images)
    assert torch.equal(pipe(PROMPT, steps=2, seed=3).pixels, pipe(PROMPT, steps=2, seed=3).pixels)
    with pytest.raises(ValueError, match="the noise has shape"):
        pipe(PROMPT, width=64, noise=found.noise)


@pytest.mark.parametrize("by", ["best-of-n", "search"])
def test_without_gradients_the_best_of_the_tries_is_kept(by):
    pipe, reward = Pipeline.open(device="cpu", dtype=torch.float32), open_rewards([RewardChoice("judge")])
    with torch.inference_mode():            # nothing needs a gradient
        found = reno(pipe, PROMPT, reward, NoiseRecipe(iterations=6), steps=1, seed=3, by=by)
    totals = [done.total[0] for done in found.history]
    assert len(set(totals)) == 6 and found.total.item() == max(totals) and found.images.shape == (1, 3, 128, 128)
    assert torch.equal(pipe(PROMPT, steps=1, seed=3, noise=found.noise).pixels, found.images)
    again = reno(pipe, PROMPT, reward, NoiseRecipe(iterations=6), steps=1, seed=3, by=by)
    assert torch.equal(again.noise, found.noise)
    with pytest.raises(ValueError, match="by is 'luck'; use gradient, best-of-n, search"):
        reno(pipe, PROMPT, reward, by="luck")


def test_a_checkpoint_is_sampled_as_it_was_made_for():
    """The TDM LoRA says so in its header; the base model under it cannot be differentiated."""
    def opened(*loras):
        return Pipeline.open(SHIPPED.teacher, SHIPPED.vae, SHIPPED.t5, "cpu", torch.float32, loras=loras)

    pipe, reward, one = opened((SHIPPED.tdm, 1.0)), open_rewards([RewardChoice("judge")]), NoiseRecipe(iterations=1)
    found = reno(pipe, PROMPT, reward, one, seed=3, by="best-of-n")
    assert torch.equal(found.images, pipe(PROMPT, sampler="tdm", steps=4, seed=3).pixels)
    assert not torch.equal(found.images, reno(pipe, PROMPT, reward, one, seed=3, sampler="lcm", by="search").images)
    base = opened()
    with pytest.raises(ValueError, match="sampler dpm cannot be optimised through"):
        reno(base, PROMPT, reward, one)
    assert not {"transformer", "vae"} & vars(base).keys() and base.t5.encoder is None


def command(*words, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pixart", *map(str, words)])
    return command_line.main()


def test_the_command_saves_image_noise_log_and_curve(tmp_path, monkeypatch, capsys):
    out = tmp_path / "star.png"
    assert command("reno", PROMPT, "--out", out, "--iterations", 3, "--steps", 1, "--seed", 5, "--dtype", "fp32",
                   "--device", "cpu", monkeypatch=monkeypatch) == 0
    said = capsys.readouterr().out
    assert said.startswith("reward ") and str(out) in said
    log = json.loads((tmp_path / "star.json").read_text())
    assert len(log["iterations"]) == 3 and log["weights"] == {"judge": 1.0} and not log["stopped"]
    assert log["sampler"] == "lcm"
    assert load_noise(tmp_path / "star-noise.safetensors").shape == (1, 4, 16, 16)
    assert Image.open(tmp_path / "star-rewards.png").width > 400
    assert Image.open(tmp_path / "star-start.png").size == (128, 128)
    again = tmp_path / "again.png"
    assert command("generate", PROMPT, "--out", again, "--steps", 1, "--seed", 5, "--dtype", "fp32", "--device", "cpu",
                   "--noise", tmp_path / "star-noise.safetensors", monkeypatch=monkeypatch) == 0
    assert again.read_bytes() == out.read_bytes()
    assert command("reno", PROMPT, "--out", tmp_path / "best.png", "--iterations", 3, "--steps", 1, "--seed", 5,
                   "--by", "best-of-n", "--device", "cpu", monkeypatch=monkeypatch) == 0
    best = json.loads((tmp_path / "best.json").read_text())
    assert (best["by"], len(best["iterations"])) == ("best-of-n", 3) and "rate" not in best and log["rate"] == 5.0


@pytest.mark.parametrize("words, message", [
    (("--sampler", "dpm"), "sampler dpm cannot be optimised through"),
    (("--reward", "hpsv2", "--rewards", "nowhere"), "put HPS_v2.1_compressed.pt (xswu/HPSv2"),
    (("--reward", "clip"), "Name a folder of rewards that holds clip"),
    (("--relevance", "0.3"), "--relevance and --common go together"),
    (("--by", "search", "--rate", "2"), "--rate has no effect with --by search"),
    (("--noise", "none.safetensors"), "no such file or folder")])
def test_what_is_wrong_is_said_in_one_line(words, message, tmp_path, monkeypatch, capsys):
    assert command("reno", PROMPT, "--out", tmp_path / "x.png", *words, monkeypatch=monkeypatch) == 1
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_noise_of_another_size_is_refused(tmp_path, monkeypatch, capsys):
    """In several steps it was an error of torch, in one an image of another size than the one asked for."""
    save_noise(tmp_path / "n.safetensors", torch.randn(1, 4, 8, 8), {})
    for steps in (1, 4):
        assert command("reno", PROMPT, "--out", tmp_path / "x.png", "--noise", tmp_path / "n.safetensors", "--steps",
                       steps, monkeypatch=monkeypatch) == 1
        assert "the noise has shape (1, 4, 8, 8); these images start from (1, 4, 16, 16)" in capsys.readouterr().err


def test_without_matplotlib_all_but_the_curve_is_saved(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert command("reno", PROMPT, "--out", tmp_path / "x.png", "--iterations", 1, "--steps", 1,
                   monkeypatch=monkeypatch) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4 and "needs matplotlib" in caplog.text
    assert not (tmp_path / "x-rewards.png").exists()


def test_other_files_are_no_noise(tmp_path):
    with pytest.raises(ValueError, match="holds no saved noise"):
        load_noise(SHIPPED.vae)
    (tmp_path / "x.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="x.safetensors"):
        load_noise(tmp_path / "x.safetensors")


def test_noise_of_the_shipped_size_is_what_the_seed_gives():
    vae, config = load_vae(SHIPPED.vae), replace(CONFIG)
    generate = Generator(random_transformer(), decoder(vae, config.latent_scale), request(), caption())
    assert torch.equal(generate.start[0], torch.randn(4, 4, 6, generator=torch.Generator().manual_seed(4)))
