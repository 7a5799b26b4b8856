"""Every trainer on a CUDA device: the same result as on a CPU, no waiting in a step, states that are taken up again."""
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from on_cuda.pretend import Cuda, CudaTensor, bare
from on_cuda.pretended import pretend_cuda
from safetensors.torch import load_file
from torch import nn
from train.test_command import TOML, run
from train.training_data import SHORT, TINY, fresh, write_data

from pixart.checkpoint import save_checkpoint
from pixart.mini import SHIPPED
from pixart.model.transformer import PixArtTransformer
from pixart.train import loop
from pixart.train.data import PreparedFolder
from pixart.train.draws import generator_for
from pixart.train.initialize import initialize
from pixart.train.objectives import Diffusion

DEEP = replace(TINY, depth=8)
METHODS: dict[str, tuple[str, ...]] = {
    "diffusion": ("--method.timesteps.kind", "laplace", "--method.weighting", "v"),
    "diffusion, stratified": ("--method.timesteps.stratified", "true"),
    "lcm": ("--method.guidance_max", "6"),
    "lora": ("--method.rank", "2"),
    "lora, dora": ("--method.rank", "2", "--method.dora", "true", "--method.targets", '["attn.qkv"]'),
    "lcm-lora": ("--method.rank", "2"),
    "controlnet": ("--method.blocks", "1"),
    "tdm": (),
    "tdm, adapters": ("--method.rank", "2"),
    "dmd": ("--method.regression", "0"),
    "ilf": ("--method.steps", "4"),
    "flexdit": (),
    "reward-lora": ("--method.rank", "2", "--method.steps", "2", "--method.gradient_steps", "1", "--method.size", "64",
                    "--method.relevance", "0.3"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a deeper one for FlexDiT, and data."""
    folder = tmp_path_factory.mktemp("place")
    write_data(folder / "data")
    save_checkpoint(folder / "base.safetensors", fresh())
    deep = initialize(PixArtTransformer(DEEP), seed=1)
    nn.init.normal_(deep.final_layer.linear.weight, std=0.02, generator=torch.Generator().manual_seed(2))
    save_checkpoint(folder / "deep.safetensors", deep)
    (folder / "train.toml").write_text(TOML)
    captions = "a large red circle in the centre on white", "a small blue star on the left on sand"
    (folder / "captions.txt").write_text("\n".join(captions))
    return folder


def trained(name: str, place: Path, out: Path, *words: str) -> dict[str, torch.Tensor]:
    """What a method writes after three steps."""
    method = name.split(",")[0]
    own: dict[str, tuple] = {"flexdit": ("--model.base", place / "deep.safetensors"), "reward-lora": (
        "--model.base", SHIPPED.student, "--data.folder", place / "captions.txt")}
    run(method, "--config", place / "train.toml", *own.get(method, ()), "--output.folder", out / "run", "--output.file",
        out / "made.safetensors", "--output.dtype", "fp32", "--train.steps", "3", "--train.save_every", "2",
        "--train.warmup", "0", "--train.ema", "0.5", "--train.precision", "no", *METHODS[name], *words)
    return load_file(out / "made.safetensors")


def on_a_cpu(name: str, place: Path, out: Path, *words: str) -> dict[str, torch.Tensor]:
    forget_processes()
    return trained(name, place, out, *words)


def forget_processes() -> None:
    """accelerate remembers the device of a process."""
    from accelerate.state import AcceleratorState, PartialState
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


@pytest.mark.parametrize("name", METHODS)
def test_a_method_learns_what_it_learns_on_a_cpu(name, place, tmp_path):
    want = on_a_cpu(name, place, tmp_path / "cpu")
    with pretend_cuda() as gpu:
        forget_processes()
        got = trained(name, place, tmp_path / "gpu")
        assert gpu.uploads > 0 and not gpu.doubles
    forget_processes()
    assert got.keys() == want.keys()
    for key, value in want.items():
        torch.testing.assert_close(got[key], value, rtol=1e-3, atol=2e-5, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_in_half_precision_with_noise_of_the_device_and_goes_on(name, place, tmp_path, precision):
    words = ("--train.precision", precision, "--train.random_on_device", "true", "--train.accumulation", "2",
             "--train.recompute", "true", "--model.dtype", precision)
    with pretend_cuda():
        forget_processes()
        trained(name, place, tmp_path, *words, "--train.steps", "2")
        made = trained(name, place, tmp_path, *words, "--train.steps", "4")
    forget_processes()
    assert all(torch.isfinite(tensor).all() for tensor in made.values())


def test_parts_of_a_step_take_their_own_images_where_the_device_draws(gpu: Cuda, place):
    """Images are picked on the CPU all the same: each part of a step saw those of the first."""
    data = PreparedFolder(place / "data")
    whole = data.batch(generator_for(0, 3, slice(0, 4), 4, "cuda"), 4)
    parts = [data.batch(generator_for(0, 3, slice(first, first + 2), 4, "cuda"), 2) for first in (0, 2)]
    assert torch.equal(torch.cat([part.latents for part in parts]), whole.latents)
    assert not torch.equal(parts[0].latents, parts[1].latents)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["no", "fp16", "bf16"])
def test_every_optimizer_goes_on_from_its_state(gpu: Cuda, place, tmp_path, optimizer, precision):
    forget_processes()
    data = PreparedFolder(place / "data")
    config = replace(SHORT, steps=4, optimizer=optimizer, precision=precision, log_every=100, save_every=100)
    training = loop.Training(fresh(), Diffusion(data), data, config)
    assert all(isinstance(p, CudaTensor) for p in training.model.parameters())
    training.step(0)
    training.step(1)
    training.save(tmp_path / "state.pt", 2)
    forget_processes()
    again = loop.Training(fresh(), Diffusion(data), data, config)
    assert again.resume(loop.read_state(tmp_path / "state.pt"), tmp_path / "state.pt") == 2
    for one in (training, again):
        one.step(2)
    for (name, a), b in zip(training.model.named_parameters(), again.model.parameters()):
        assert torch.equal(bare(a), bare(b)), name
    forget_processes()
