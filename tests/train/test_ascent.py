"""Reward fine-tuning: which passes learn, that LoRA and reward move, resuming, and what is refused."""
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from pixart import __main__ as command_line
from pixart.mini import SHIPPED
from pixart.train.ascent import plain_generator, some_passes, taught_passes
from pixart.train.caption_list import CaptionList, read_captions
from pixart.train.draws import generator_for
from pixart.train.jobs import assemble
from pixart.train.loop import train
from pixart.train.settings import read_settings

CAPTIONS = ("a large red circle in the centre on a white background", "a green ring above a pink cross on sand",
            "a small blue star on the left on a navy background")


def wanted(folder, **changed):
    (folder / "captions.txt").write_text("\n".join(CAPTIONS), encoding="utf-8")
    given = {"model.base": str(SHIPPED.student), "model.attention": "matmul",
             "data.folder": str(folder / "captions.txt"), "train.steps": "2", "train.batch": "2",
             "train.learning_rate": "0.01", "train.warmup": "0",
             "train.ema": "0", "train.precision": "no", "method.rank": "4", "method.steps": "2", "method.size": "64",
             "method.gradient_steps": "1", "output.folder": str(folder / "run"),
             "output.file": str(folder / "reward.safetensors"), **changed}
    return read_settings("reward-lora", None, given)


def test_what_a_step_has_in_common_is_not_told_by_its_noise():
    of_images, common = generator_for(0, 3), plain_generator(generator_for(0, 3))
    assert not torch.isin(torch.rand(50, generator=of_images), torch.rand(50, generator=common)).any()


def test_the_passes_that_learn_are_evenly_spaced_from_a_random_first_one():
    found = {tuple(sorted(taught_passes(50, 5, generator_for(0, step)))) for step in range(200)}
    assert all(len(passes) == 5 and {b - a for a, b in zip(passes, passes[1:])} == {10} for passes in found)
    assert {passes[0] for passes in found} == set(range(10))
    assert taught_passes(4, 4, generator_for(0, 0)) == {0, 1, 2, 3}
    assert {tuple(sorted(taught_passes(4, 3, generator_for(0, step)))) for step in range(50)} == {(0, 1, 2), (1, 2, 3)}
    assert set().union(*(taught_passes(7, 2, generator_for(0, step)) for step in range(200))) == set(range(7))
    assert taught_passes(4, 2, generator_for(3, 7, slice(0, 1), 2)) == taught_passes(4, 2, generator_for(3, 7))


def test_no_gradient_goes_through_the_input_of_a_pass_nor_into_the_other_passes():
    weight = torch.nn.Parameter(torch.ones(2))

    class Net(torch.nn.Module):
        def forward(self, x, t):
            return x * weight[int(t[0])]
    call = some_passes(Net(), {}, {1})
    x = torch.ones(1, 1, 1, 1)
    for number in range(2):
        x = x + call(x, torch.tensor([number]))
    x.sum().backward()
    assert weight.grad.tolist() == [0.0, 2.0]


def test_a_pass_that_learns_uses_no_weights_that_autocast_halved_in_one_that_does_not():
    """Torch before 2.11 keeps such copies without their gradient; here they are told apart by their values."""
    network, x = torch.nn.Linear(4, 4, bias=False), torch.ones(1, 4)
    call = some_passes(lambda x, t: network(x), {}, {1})
    with torch.autocast("cpu", torch.bfloat16):
        call(x, torch.zeros(1))
        network.weight.data.zero_()
        assert not call(x, torch.zeros(1)).any()


def test_captions_are_drawn_with_their_words(tmp_path):
    job = assemble(wanted(tmp_path))
    data: CaptionList = job.data
    batch = data.batch(generator_for(0, 1), 4)
    assert set(batch.texts) <= set(CAPTIONS) and batch.latents.shape == (4, 4, 8, 8)
    for row, text in enumerate(batch.texts):
        own = data.captions[data.texts.index(text)]
        assert torch.equal(batch.context[row, :own.context.shape[1]], own.context[0])
    assert batch.to(torch.device("cpu")).texts == batch.texts
    silent = data.without_caption(batch)
    assert silent.mask.sum() == 4 * len(data.null_mask)
    wide = CaptionList(tmp_path, data.captions, data.captions[0], 4, 64, 128).batch(generator_for(0, 1), 2)
    assert wide.latents.shape == (2, 4, 8, 16) and wide.size.tolist() == [[64, 128]] * 2
    assert wide.aspect.tolist() == [0.5, 0.5]           # height over width


@pytest.mark.parametrize(("trains_on", "encodes_on"), [("cuda:1", "cuda:1"), ("mps", "cpu"), ("cpu", "cpu")])
def test_captions_are_encoded_on_the_gpu_that_trains(tmp_path, monkeypatch, trains_on, encodes_on):
    class Asked(Exception):
        pass

    def ask(path, bits, device):
        raise Asked(str(device))
    monkeypatch.setattr("accelerate.PartialState", lambda: SimpleNamespace(device=torch.device(trains_on)))
    monkeypatch.setattr("pixart.train.ascent_files.T5Encoder", ask)
    with pytest.raises(Asked, match=f"^{encodes_on}$"):
        assemble(wanted(tmp_path))


def test_two_steps_move_the_adapters_and_the_same_seed_repeats_them(tmp_path):
    states = []
    for name in ("one", "two"):
        settings = wanted(tmp_path)
        job = assemble(settings)
        result = train(job.model, job.objective, job.data, settings.train, tmp_path / name, settings=job.facts,
                       cpu=True)
        states.append({key: value.clone() for key, value in result.state_dict().items() if "lora_B" in key})
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(value.abs().sum() > 0 for value in states[0].values())


def test_the_command_writes_a_lora_that_is_sampled_as_its_base(tmp_path, monkeypatch, capsys):
    settings = wanted(tmp_path)
    words = ["--model.base", SHIPPED.student, "--data.folder", settings.data.folder, "--train.steps", 1,
             "--train.batch", 2, "--train.precision", "no", "--train.ema", 0, "--train.learning_rate", 0.001,
             "--method.rank", 2, "--method.steps", 1,
             "--method.size", 64, "--method.gradient_steps", 1, "--method.relevance", 0.3,
             "--output.folder", tmp_path / "run", "--output.file", tmp_path / "reward.safetensors"]
    monkeypatch.setattr(sys, "argv", ["pixart", "train", "reward-lora", *map(str, words)])
    assert command_line.main() == 0, capsys.readouterr().err
    with safe_open(tmp_path / "reward.safetensors", "pt") as file:
        assert '"lcm"' in file.metadata()["pixart_sampling"] and len(file.keys()) > 10


@pytest.mark.parametrize("changed, message", [
    ({"method.sampler": "dpm"}, "sampler dpm cannot be optimised through"),
    ({"method.gradient_steps": "3"}, "gradient_steps is 3"), ({"method.relevance": "2"}, "relevance is 2"),
    ({"method.rewards": '["beauty"]'}, "unknown reward 'beauty'"),
    ({"method.rewards": '["clip"]'}, "Name a folder of rewards"), ({"method.common": "all"}, "common is 'all'"),
    ({"data.folder": "/nowhere.txt"}, "no text file with captions")])
def test_what_is_wrong_is_said_before_it_starts(changed, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message.replace("[", r"\[")):
        assemble(wanted(tmp_path, **changed))


def test_an_empty_file_of_captions_is_refused(tmp_path):
    (tmp_path / "none.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="no captions in this file"):
        read_captions(tmp_path / "none.txt")
