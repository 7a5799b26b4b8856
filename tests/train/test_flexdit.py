"""Training FlexDiT: from a PixArt checkpoint or from one of its own, stopped and resumed, one density a step."""
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train.training_data import TINY, write_data

from pixart.checkpoint import load, save_checkpoint
from pixart.model.flexdit import FlexDiT
from pixart.model.flexdit_config import Density, Segments
from pixart.model.to_flexdit import to_flexdit
from pixart.model.transformer import PixArtTransformer
from pixart.train import command, settings
from pixart.train.draws import generator_for
from pixart.train.initialize import initialize
from pixart.train.one_density import one_density
from pixart.train.timesteps import Timesteps

DEEP = replace(TINY, depth=8)


def base() -> PixArtTransformer:
    model = initialize(PixArtTransformer(DEEP), seed=1)
    torch.nn.init.normal_(model.final_layer.linear.weight, std=0.02, generator=torch.Generator().manual_seed(2))
    return model


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    told = {"model.base": save_checkpoint(tmp_path / "base.safetensors", base()),
            "data.folder": write_data(tmp_path / "data"), "output.folder": tmp_path / "run",
            "output.file": tmp_path / "flex.safetensors", "output.dtype": "fp32", "train.steps": 4, "train.batch": 4,
            "train.save_every": 2, "train.precision": "no", "train.learning_rate": 1e-3, "train.ema": 0.5}
    return [str(word) for key, value in told.items() for word in (f"--{key}", value)]


def run(words: list[str], method: str = "flexdit") -> None:
    from accelerate import PartialState
    given = command.method_parser(method).parse_args(words)
    command.execute(settings.read_settings(method, None, command.replacements(given)), PartialState(cpu=True))


def changed(words: list[str], **replaced: object) -> list[str]:
    return [*words, *(str(word) for key, value in replaced.items() for word in (f"--{key.replace('__', '.')}", value))]


def test_the_command_writes_a_file_and_a_resumed_run_the_same(words, tmp_path):
    run(changed(words, method__r_max=0.75))
    found, first = load(tmp_path / "flex.safetensors"), load_file(tmp_path / "flex.safetensors")
    assert isinstance(found, FlexDiT) and found.config.segments == Segments.for_depth(8)
    assert found.config.density == Density(0.61, 0.75)
    two = changed(words, method__r_max=0.75, output__folder=tmp_path / "two")
    run(changed(two, train__steps=2))
    run(two)
    second = load_file(tmp_path / "flex.safetensors")
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())
    start = to_flexdit(load(tmp_path / "base.safetensors")).state_dict()
    moved = {name for name, tensor in first.items() if not torch.equal(tensor, start.get(name, start.get(
        f"{name}.weight")))}
    assert first.keys() - moved == {"y_embedder.y_embedding"}


def test_another_density_does_not_go_on_from_a_state(words):
    run(words)
    with pytest.raises(ValueError, match="r_max"):
        run(changed(words, method__r_max=0.7, train__steps=6))


def test_a_flexdit_is_trained_on_and_keeps_its_density_unless_told(words, tmp_path):
    made = to_flexdit(base(), Segments(0, 2, 1, 0, 2), Density(0.3, 0.5, 2))
    flex = save_checkpoint(tmp_path / "made.safetensors", made)
    run(changed(words, model__base=flex, method__pieces=3))
    found = load(tmp_path / "flex.safetensors").config
    assert found.segments == made.config.segments and found.density == Density(0.3, 0.5, 3)
    with pytest.raises(ValueError, match=r"a FlexDiT of 0 pooling.*already; leave method.pooling"):
        run(changed(words, model__base=flex, method__pooling=2))
    run(changed(words, model__base=flex, output__folder=tmp_path / "lcm"), "lcm")
    assert isinstance(load(tmp_path / "flex.safetensors"), FlexDiT)
    with pytest.raises(ValueError, match="a FlexDiT, which flexdit and lcm train"):
        run(changed(words, model__base=flex, output__folder=tmp_path / "lora"), "lora")


@pytest.mark.parametrize(("more", "message"), [
    ({"method__top": 2}, "the segments have 9 blocks, the model 8"),
    ({"method__r_max": 1.0}, "r_max is 1, a density that leaves no token"),
    ({"output__file": "folder"}, "must end in .safetensors")])
def test_what_cannot_be_meant_is_refused(words, more, message):
    with pytest.raises(ValueError, match=message):
        run(changed(words, **more))


# -- one density a step ------------------------------------------------------------------------------------------------

KINDS = [Timesteps(), Timesteps(stratified=True), Timesteps("range", low=300, high=700, share=1.0)]


@pytest.mark.parametrize("timesteps", KINDS)
def test_all_images_of_a_step_have_one_density_and_all_steps_the_distribution(timesteps):
    density = Density(0.5, 0.8, pieces=3)
    drawn = [one_density(timesteps, density).draw(50, generator_for(0, step)) for step in range(400)]
    rates = [{density.rate(t) for t in each.tolist()} for each in drawn]
    assert all(len(each) == 1 for each in rates) and len(set.union(*rates)) == (2 if timesteps.share == 1.0 else 4)
    found = torch.bincount(torch.cat(drawn), minlength=1000).double() / 20000
    for first, last in ((0, 250), (250, 500), (500, 750), (750, 1000)):
        inside = timesteps.probabilities[first:last]
        assert found[first:last].sum().item() == pytest.approx(inside.sum().item(), abs=0.08)
        if inside.sum() > 0.01:
            mean = (inside * torch.arange(first, last)).sum() / inside.sum()
            got = (found[first:last] * torch.arange(first, last)).sum() / found[first:last].sum()
            assert got.item() == pytest.approx(mean.item(), abs=6)


def test_processes_that_split_a_step_draw_its_rows():
    timesteps = one_density(Timesteps(), Density())
    whole = timesteps.draw(8, generator_for(0, 3, slice(0, 8), 8))
    parts = [timesteps.draw(4, generator_for(0, 3, slice(at, at + 4), 8)) for at in (0, 4)]
    assert torch.equal(torch.cat(parts), whole)


def test_a_fixed_density_is_one_stretch():
    assert Density(0.7, 0.7).starts == (0,) and Density().starts == (0, 250, 500, 750)
