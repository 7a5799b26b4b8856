"""Training a PT-DiT: its target, its noise levels, a loss that falls, and a command that stops and resumes."""
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train.training_data import write_data

from pixart.pt_dit.config import PTDiTConfig
from pixart.pt_dit.load import load_pt_dit, save_pt_dit
from pixart.pt_dit.transformer import PTDiT
from pixart.sampling.flow import flow_latent
from pixart.train import command, settings
from pixart.train.data import PreparedFolder
from pixart.train.draws import generator_for
from pixart.train.initialize import initialize_pt_dit
from pixart.train.rectified_flow import RectifiedFlow

TINY = PTDiTConfig(depth=2, hidden=32, heads=4, learned_variance=False, caption_width=8, caption_tokens=6, base_size=4,
                   window=2, proxy=2, flow_side=32)
CONFIGS = Path(command.__file__).parent / "configs"


class Straight(PTDiT):
    """Knows the images of the batch, and sees what it is told."""

    def forward(self, latent, timestep, context, mask=None, options=None):
        share = timestep.view(-1, 1, 1, 1) / 1000
        self.told, self.read, noise = timestep, (context, mask), (latent - (1 - share) * self.images) / share
        torch.testing.assert_close(flow_latent(self.images, noise, timestep / 1000), latent)
        return self.images - noise


def test_who_knows_the_image_has_no_loss(tmp_path):
    data, generator = PreparedFolder(write_data(tmp_path)), generator_for(0, 0)
    model = Straight(TINY)
    batch = data.batch(generator, 6)
    model.images = batch.latents
    assert RectifiedFlow(data)(model, model, batch, generator) < 1e-6
    assert len(set(model.told.tolist())) == 6           # every image has a noise level of its own


def test_a_share_of_the_captions_is_dropped(tmp_path):
    data, generator, drawn = PreparedFolder(write_data(tmp_path)), generator_for(0, 0), torch.Generator()
    model, objective = Straight(TINY), RectifiedFlow(data, caption_dropout=0.25)
    batch = data.batch(generator, 12)
    model.images = batch.latents
    drawn.set_state(generator.get_state())
    objective.shares(12, drawn)
    dropped = torch.rand(12, generator=drawn) < 0.25
    objective(model, model, batch, generator)
    expected = data.without_caption(batch, dropped)
    assert 0 < dropped.sum() < 6 and torch.equal(model.read[0], expected.context)
    assert torch.equal(model.read[1], expected.mask)


def test_noise_levels_are_logit_normal_and_shifted_with_the_size(tmp_path):
    data = PreparedFolder(write_data(tmp_path))
    shares = RectifiedFlow(data, centre=0.5, spread=2.0).shares(4000, generator_for(0, 0))
    assert torch.logit(shares.double()).mean() == pytest.approx(0.5, abs=0.1)
    assert torch.logit(shares.double()).std() == pytest.approx(2.0, abs=0.1)
    even = RectifiedFlow(data, spread=0).shares(4000, generator_for(0, 0))
    assert even.mean() == pytest.approx(0.5, abs=0.02) and even.std() == pytest.approx(12 ** -0.5, abs=0.01)
    told = []
    for flow_side in (64, 32):                          # images of about 64 px: a shift of 1, and of 2
        model, generator = Straight(replace(TINY, flow_side=flow_side)), generator_for(0, 3)
        batch = data.batch(generator, 6)
        model.images = batch.latents
        objective, drawn = RectifiedFlow(data, flow_side=flow_side), torch.Generator()
        drawn.set_state(generator.get_state())
        plain = objective.shares(6, drawn)
        objective(model, model, batch, generator)
        side = math.sqrt(64 * math.prod(batch.latents.shape[-2:]))
        told.append((model.told / 1000, side / flow_side))
    (one, first), (two, second) = [(share / (shift + (1 - shift) * share), shift) for share, shift in told]
    torch.testing.assert_close(one, plain)              # the same levels before their shifts
    torch.testing.assert_close(two, plain)
    assert second == pytest.approx(2 * first)


def test_the_loss_falls_and_everything_learns(tmp_path):
    data, model = PreparedFolder(write_data(tmp_path)), initialize_pt_dit(PTDiT(TINY), 0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer, losses = torch.optim.Adam(model.parameters(), 3e-3), []
    objective = RectifiedFlow(data, flow_side=64)
    for number in range(120):
        generator = generator_for(0, number % 4)
        loss = objective(model, model, data.batch(generator, 8), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    assert all((tensor != before[name]).any() for name, tensor in model.state_dict().items())


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    new = {name: getattr(TINY, name) for name in ("depth", "hidden", "heads", "caption_width", "caption_tokens",
                                                  "base_size", "window", "proxy", "flow_side")}
    told = {**{f"model.new.{name}": value for name, value in new.items()}, "model.new.learned_variance": "false",
            "data.folder": write_data(tmp_path / "data"), "output.folder": tmp_path / "run",
            "output.file": tmp_path / "pt-dit.safetensors", "output.dtype": "fp32", "train.steps": 4, "train.batch": 2,
            "train.save_every": 2, "train.precision": "no", "train.learning_rate": 1e-3, "train.ema": 0.5}
    return [word for key, value in told.items() for word in ("--set", f"{key}={value}")]


def run(words: list[str]) -> None:
    given = command.method_parser("pt-dit").parse_args(words)
    from accelerate import PartialState
    command.execute(settings.read_settings("pt-dit", None, command.replacements(given)), PartialState(cpu=True))


def test_the_command_writes_a_file_and_a_resumed_run_the_same(words, tmp_path):
    run(words)
    assert load_pt_dit(tmp_path / "pt-dit.safetensors").config == TINY
    first = load_file(tmp_path / "pt-dit.safetensors")
    again = [word.replace(str(tmp_path / "run"), str(tmp_path / "two")) for word in words]
    run([*again, "--set", "train.steps=2"])
    run(again)
    second = load_file(tmp_path / "pt-dit.safetensors")
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())


def test_a_file_of_ours_is_trained_on_and_stays_as_it_is(words, tmp_path):
    base = save_pt_dit(tmp_path / "base.safetensors", initialize_pt_dit(PTDiT(TINY), 3))
    before, others = base.read_bytes(), [word for word in words if word.startswith(("data", "output", "train"))]
    run([word for other in (*others, f"model.base={base}") for word in ("--set", other)])
    assert base.read_bytes() == before
    assert (load_file(base)["blocks.0.visual_linear.weight"] == 0).all()
    assert (load_file(tmp_path / "pt-dit.safetensors")["blocks.0.visual_linear.bias"] != 0).any()


@pytest.mark.parametrize("more, message", [
    ("output.file=ptdit", "must end in .safetensors"), ("model.variant=alpha-512", "no effect on a PT-DiT"),
    ("train.mup_base_width=16", "muP has no rules"), ("method.spread=-1", "spread is -1"),
    ("model.new.window=3", "do not divide into proxies of 2"), ("data.folder=/none", "no prepared training data"),
    ("model.new.caption_width=9", "the model reads 9")])
def test_what_cannot_be_meant_is_refused(more, message, words):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run([*words, "--set", more])


@pytest.mark.parametrize("name", ["mini-pt-dit", "pt-dit-1024"])
def test_ready_configurations_are_read(name, tmp_path):
    files = {"data.folder": "data", "output.folder": "run", "output.file": "new.safetensors"}
    if name == "pt-dit-1024":
        files["model.base"] = "old.pt"
    found = settings.read_settings("pt-dit", CONFIGS / f"{name}.toml", files)
    assert found.train.steps > 0 and (found.model.new is None) == (name == "pt-dit-1024")
