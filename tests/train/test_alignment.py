"""Alignment with a frozen network (REPA): what it compares, which weights learn from it, and how long."""
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from train.test_command import TOML, run
from train.training_data import SHORT, TINY, fresh, write_data

from pixart.checkpoint import CheckpointError, load, read_config, save_checkpoint
from pixart.mini import SHIPPED
from pixart.mini.judge import load_judge
from pixart.train.alignment import Aligned, AlignedDiffusion, Alignment, misalignment, on_grid
from pixart.train.data import Batch, PreparedFolder
from pixart.train.draws import generator_for
from pixart.train.frozen_features import DinoEye, JudgeEye, image_features
from pixart.train.loop import train
from pixart.train.method_settings import DiffusionMethod
from pixart.train.objectives import Diffusion

JUDGE = Alignment("judge", block=0, vae=SHIPPED.vae)


class Seen(nn.Module):
    """Features that are easily learned: what is in the latents, and how often they were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def forward(self, latents: Tensor, grid: tuple[int, int]) -> Tensor:
        self.asked += 1
        return on_grid(latents, grid)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedFolder:
    return PreparedFolder(write_data(tmp_path_factory.mktemp("data")))


@pytest.fixture
def batch(data) -> Batch:
    return data.batch(generator_for(0, 0), 4)


def objective_of(data: PreparedFolder, align: Alignment = JUDGE) -> AlignedDiffusion:
    return AlignedDiffusion(data, features=Seen(), align=align)


# -- the loss ----------------------------------------------------------------------------------------------------------

def test_the_loss_is_one_minus_the_cosine_of_maps_without_their_mean():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(2, 5, 4, 6, generator=generator) * 3 + 7
    unit = (target - target.mean((2, 3), keepdim=True)) / target.std((2, 3), keepdim=True, correction=0)
    assert misalignment(unit, target) < 1e-6 and misalignment(-unit, target) == pytest.approx(2)
    maps = torch.randn(2, 5, 4, 6, generator=generator)
    assert misalignment(maps, target) == misalignment(2 * maps, target)
    torch.testing.assert_close(misalignment(maps, 3 * target - 50), misalignment(maps, target))
    places = zip(*(each.permute(0, 2, 3, 1).reshape(-1, 5) for each in (maps, unit)))
    by_hand = [1 - torch.dot(a, b) / (a.norm() * b.norm()) for a, b in places]
    torch.testing.assert_close(misalignment(maps, target), torch.stack(by_hand).mean())


def test_the_network_says_what_it_says_and_the_maps_are_those_of_its_block(batch):
    model, seen = fresh(), []
    aligned = Aligned(model, 7, block=0)
    handle = model.blocks[0].register_forward_hook(lambda module, given, output: seen.append(output))
    output, maps = aligned(batch.latents, torch.full((4,), 300.0), **batch.conditions(), learned_variance=True)
    handle.remove()
    assert torch.equal(output, model(batch.latents, torch.full((4,), 300.0), **batch.conditions(),
                                     learned_variance=True))
    h, w = (side // 2 for side in batch.latents.shape[-2:])
    assert maps.shape == (4, 7, h, w)
    padded = torch.nn.functional.pad(seen[0].view(4, h, w, -1), (0, 0, 1, 1, 1, 1))
    place = padded[1, 1:4, 2:5].permute(2, 0, 1)                # around the token in row 1, column 2
    torch.testing.assert_close(maps[1, :, 1, 2], (aligned.head.weight * place).sum((1, 2, 3)) + aligned.head.bias)


def test_only_blocks_up_to_the_aligned_one_learn_from_it(data, batch):
    objective, aligned = objective_of(data), Aligned(fresh(), 4, block=0)
    noised = objective.noised(batch, generator_for(0, 0))
    maps = aligned(*noised.inputs, **noised.batch.conditions())[1]
    misalignment(maps, objective.features(batch.latents, maps.shape[-2:])).backward()
    learned = {name for name, p in aligned.named_parameters() if p.grad is not None and p.grad.any()}
    assert "head.weight" in learned and "network.blocks.0.mlp.fc1.weight" in learned
    assert not any(name.startswith(("network.blocks.1.", "network.final_layer.")) for name in learned)


def test_beside_it_stands_the_usual_loss_of_the_same_noise(data, batch):
    aligned = Aligned(fresh(), 4, block=0)
    plain = Diffusion(data)(aligned.network, aligned, batch, generator_for(0, 5))
    objective = objective_of(data, replace(JUDGE, weight=0.25, steps=6))
    with_it = objective(aligned, aligned, batch, generator_for(0, 5))
    noised = objective.noised(batch, generator_for(0, 5))
    maps = aligned(*noised.inputs, **noised.batch.conditions())[1]
    expected = plain + 0.25 * misalignment(maps, on_grid(batch.latents, maps.shape[-2:]))
    torch.testing.assert_close(with_it, expected)
    asked = objective.features.asked
    assert torch.equal(objective(aligned, aligned, batch, generator_for(0, 6)),
                       Diffusion(data)(aligned.network, aligned, batch, generator_for(0, 6)))
    assert objective.features.asked == asked                    # nothing is drawn for what is over
    aligned.zero_grad()
    objective(aligned, aligned, batch, generator_for(0, 6)).backward()      # processes wait for every weight's gradient
    assert all(p.grad is not None for p in aligned.parameters()) and not aligned.head.weight.grad.any()


def test_the_head_begins_as_its_seed_says_and_takes_no_noise_from_others():
    network, before = fresh(), torch.get_rng_state()
    first, again, other = (Aligned(network, 4, block=0, seed=seed).head.weight for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_training_aligns_and_then_stops_to(data, tmp_path):
    def left(steps: int, folder: str) -> float:
        aligned = Aligned(fresh(), 4, block=0, seed=3)
        objective = objective_of(data, replace(JUDGE, weight=5.0, steps=steps))
        train(aligned, objective, data, replace(SHORT, steps=40, learning_rate=3e-3), tmp_path / folder)
        with torch.no_grad():
            batch = data.batch(generator_for(9, 0), 16)
            maps = aligned(batch.latents, torch.full((16,), 100.0), **batch.conditions())[1]
            return float(misalignment(maps, on_grid(batch.latents, maps.shape[-2:])))
    assert left(40, "all") < 0.5 < 0.8 < left(1, "one")


# -- what is looked at -------------------------------------------------------------------------------------------------

def test_the_judge_sees_the_decoded_images():
    features = image_features(replace(JUDGE, vae=None), read_config(SHIPPED.teacher))
    latents = torch.randn(2, 4, 16, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = features(latents, (8, 6))
        images = features.decode(latents)
        wanted = load_judge(SHIPPED.judge_a).maps(images)[-1]
    assert found.shape == (2, features.channels, 8, 6) and torch.equal(found, wanted)
    assert not any(p.requires_grad for p in features.eye.parameters())
    rounded = image_features(replace(JUDGE, vae=None), read_config(SHIPPED.teacher), torch.bfloat16)
    with torch.no_grad():
        assert features(latents, (4, 3)).shape == (2, features.channels, 4, 3)
        assert (rounded(latents, (8, 6)) - found).norm() < 0.1 * found.norm()


def dino_of(folder: Path, kind: str) -> nn.Module:
    """A tiny network with random weights, as Hugging Face publishes it."""
    transformers = pytest.importorskip("transformers", reason="DINO needs transformers, which is not installed")
    torch.manual_seed(0)
    names = {"dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters", "dinov3_vit": "DINOv3ViT"}
    if not hasattr(transformers, names[kind] + "Config"):
        pytest.skip(f"this version of transformers has no {kind}")
    more = {"intermediate_size": 48} if kind == "dinov3_vit" else {"image_size": 56}
    registers = {} if kind == "dinov2" else {"num_register_tokens": 3}
    config = getattr(transformers, names[kind] + "Config")(hidden_size=24, num_hidden_layers=2, num_attention_heads=2,
                                                           patch_size=14, **more, **registers)
    model = getattr(transformers, names[kind] + "Model")(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_with_registers", "dinov3_vit"])
def test_dino_is_shown_a_patch_for_every_place(kind, tmp_path):
    """Against the network of transformers, with an image that needs no resizing: its patches, row by row."""
    model = dino_of(tmp_path, kind)
    images = torch.rand(2, 3, 14 * 4, 14 * 6, generator=torch.Generator().manual_seed(0))
    shift, scale = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    eye = DinoEye(tmp_path)
    with torch.no_grad():
        tokens = model(pixel_values=(images - shift) / scale).last_hidden_state[:, -24:]
        torch.testing.assert_close(eye(images, (4, 6)), tokens.mT.reshape(2, 24, 4, 6), rtol=1e-4, atol=1e-5)
        assert eye(images, (2, 3)).shape == (2, 24, 2, 3)


def without(name: str):
    return lambda folder: (folder / name).unlink()


def another_kind(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))


def changed(change):
    def breaks(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", {"format": "pt"})
    return breaks


@pytest.mark.parametrize("breaks, error, message", [
    (without("config.json"), FileNotFoundError, "no config.json in this folder"),
    (without("model.safetensors"), CheckpointError, "the weights of dinov2 could not be read"),
    (another_kind, CheckpointError, "a network of the kind 'bert', not of dinov2"),
    (lambda folder: (folder / "config.json").write_text("[1]"), CheckpointError, "config.json"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"12345678"), CheckpointError, "could not be read"),
    (changed(lambda state: state.pop("encoder.layer.1.norm1.weight")), CheckpointError,
     "1 tensors are missing, such as encoder.layer.1.norm1.weight"),
    (changed(lambda state: state["layernorm.bias"].fill_(float("nan"))), CheckpointError, "what is not a number"),
])
def test_a_folder_that_is_no_dino_is_refused(breaks, error, message, tmp_path):
    dino_of(tmp_path, "dinov2")
    breaks(tmp_path)
    with pytest.raises(error, match=message) as raised:
        DinoEye(tmp_path)
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize("wish, message", [
    ({"network": "clip"}, "align.network is 'clip'; use none, judge, dinov2"),
    ({"network": "dinov2"}, "the folder belongs to"),
    ({"dinov2": Path("x")}, "the folder belongs to"),
    ({"network": "judge", "weight": 0.0}, "network = none switches"),
    ({"network": "judge", "steps": 0}, "at least 1"),
])
def test_what_cannot_be_meant_is_refused(wish, message):
    with pytest.raises(ValueError, match=message):
        Alignment(**wish)


def test_the_block_is_a_quarter_of_the_way_and_must_exist():
    assert [Alignment("judge").block_of(depth) for depth in (28, 8, 2)] == [7, 2, 0]
    with pytest.raises(ValueError, match="align.block is 8; this model has blocks 0 to 7"):
        Alignment("judge", block=8).block_of(8)
    with pytest.raises(ValueError, match="method.align.vae is needed"):
        image_features(Alignment("judge"), TINY)
    assert DiffusionMethod().align.network == "none" and JudgeEye().channels == 96


# -- the command -------------------------------------------------------------------------------------------------------

@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_data(tmp_path / "data")
    save_checkpoint(tmp_path / "base.safetensors", fresh())
    (tmp_path / "train.toml").write_text(TOML + f'[method.align]\nnetwork = "judge"\nvae = "{SHIPPED.vae}"\n')
    return tmp_path / "train.toml"


def test_the_file_holds_the_network_alone_and_a_training_goes_on_to_the_bit(file):
    folder = file.parent
    wishes = ("--config", file, "--output.dtype", "fp32", "--train.steps", "4", "--method.align.steps", "3",
              "--train.optimizer", "muon")
    run("diffusion", *wishes)
    whole = load(folder / "run" / "result.safetensors")
    assert whole.config == TINY and any(not torch.equal(a, b) for a, b in zip(whole.parameters(), fresh().parameters()))
    parts = ("--output.folder", folder / "parts", "--output.file", folder / "parts" / "result.safetensors")
    run("diffusion", *wishes, *parts, "--train.steps", "2")
    run("diffusion", *wishes, *parts)
    again = load(folder / "parts" / "result.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters()))
    with pytest.raises(ValueError, match="align.weight"):
        run("diffusion", *wishes, *parts, "--train.steps", "6", "--method.align.weight", "1.0")


def test_muon_moves_the_matrices_of_the_blocks_as_it_does_without(file):
    """Otherwise the option would change the optimizer too."""
    from pixart.train.optimizers import optimizers
    plain, aligned = fresh(), Aligned(fresh(), 4, 0)
    config = replace(SHORT, optimizer="muon")
    counts = [sum(p.numel() for group in optimizers(model, config)[1].param_groups for p in group["params"])
              for model in (plain, aligned)]
    assert counts[0] == counts[1] > 0


def test_other_methods_do_not_know_it_and_mup_is_refused(file):
    with pytest.raises(ValueError, match="align is unknown"):
        run("lora", "--config", file)
    with pytest.raises(ValueError, match="muP has no rule for the head"):
        run("diffusion", "--config", file, "--train.mup_base_width", "24")
