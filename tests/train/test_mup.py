"""muP: which weights follow which rule, that the rules give mup's own training, and that activations ignore width."""
import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixart.config import VARIANTS, KVCompression, PixArtConfig
from pixart.model.transformer import PixArtTransformer
from pixart.train.base_shapes import base_shapes, read_base_width, write_base_shapes
from pixart.train.initialize import initialize, initialize_block
from pixart.train.mup import at_width, initialize_mup, mup_parameter_groups, parameter_kinds

BASE = PixArtConfig(depth=2, hidden=48, heads=2, caption_width=64, caption_tokens=8, base_size=4, position_scale=1.0)
HIDDEN = ("t_embedder.mlp.2", "csize_embedder.mlp.2", "ar_embedder.mlp.2", "t_block.1", "y_embedder.y_proj.fc2",
          "attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj", "mlp.fc1",
          "mlp.fc2")


class Readout(nn.Linear):
    """The paper's form: the input is divided by m before the weight, whose rate is that of a vector."""

    def __init__(self, linear: nn.Linear, multiplier: float) -> None:
        super().__init__(linear.in_features, linear.out_features)
        self.multiplier = multiplier
        self.weight = nn.Parameter(linear.weight.detach() * multiplier)
        self.bias = nn.Parameter(linear.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x / self.multiplier, self.weight, self.bias)


def network(width: int = 96, seed: int = 0, config: PixArtConfig = BASE) -> PixArtTransformer:
    return initialize_mup(PixArtTransformer(at_width(config, width)), seed, BASE.hidden)


def inputs(seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    given = {"latent": torch.randn(8, 4, 8, 8, generator=generator),
             "timestep": torch.rand(8, generator=generator) * 999,
             "context": torch.randn(8, 8, 64, generator=generator)}
    return given, torch.randn(8, 8, 8, 8, generator=generator)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> list[float]:
    """Losses of `count` updates, each on other data."""
    losses = []
    for step in range(count):
        given, target = inputs(step)
        loss = ((model(**given, learned_variance=True) - target) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def explicit_groups(model: nn.Module, multiplier: float, rate: float, decay: float) -> list[dict]:
    """The rules as the paper and the mup package state them, by name, for a model with a `Readout`."""
    hidden = [p for name, p in model.named_parameters() if name.endswith(tuple(part + ".weight" for part in HIDDEN))]
    chosen = {id(p) for p in hidden}
    return [{"params": hidden, "lr": rate / multiplier, "weight_decay": decay * multiplier},
            {"params": [p for p in model.parameters() if id(p) not in chosen], "lr": rate, "weight_decay": decay}]


@pytest.mark.parametrize("config", [
    BASE, replace(BASE, micro_conditioning=False),
    replace(BASE, qk_norm=True, kv_compression=KVCompression("conv", 2, (1,)))])
def test_every_parameter_is_in_exactly_one_group_with_its_factor(config: PixArtConfig) -> None:
    model = PixArtTransformer(at_width(config, 192))
    groups = mup_parameter_groups(model, 48, 0.01, 0.1, 1e-8)
    members = [id(p) for group in groups for p in group["params"]]
    assert sorted(members) == sorted(id(p) for p in model.parameters())
    factors = {id(p): group for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        group = factors[id(parameter)]
        readout = name == "final_layer.linear.weight"
        m = 4 if readout or name.endswith(tuple(part + ".weight" for part in HIDDEN)) else 1
        assert group["lr"] == 0.01 / m and group["rate_factor"] == 1 / m, name
        assert group["weight_decay"] == 0.1 * m, name
        assert group["eps"] == 1e-8 * (4 if readout else 1), name


@pytest.mark.parametrize("width", [BASE.hidden, 192])
def test_what_compresses_keys_starts_as_their_mean_at_any_width(width: int) -> None:
    config = at_width(replace(BASE, kv_compression=KVCompression("conv", 2, (1,))), width)
    plain, mup = initialize(PixArtTransformer(config), 0), network(width, config=config)
    for block in (plain.blocks[1], mup.blocks[1], initialize_block(PixArtTransformer(config).blocks[1], 0)):
        assert (block.attn.sr.weight == 0.25).all() and not block.attn.sr.bias.any()


def test_frozen_parameters_are_left_out_and_strangers_refused() -> None:
    model = network()
    model.x_embedder.requires_grad_(False)
    members = {id(p) for group in mup_parameter_groups(model, 48, 0.01) for p in group["params"]}
    assert members == {id(p) for p in model.parameters() if p.requires_grad}
    model.adapter = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="adapter.weight"):
        mup_parameter_groups(model, 48, 0.01)
    with pytest.raises(ValueError, match="whole PixArt transformers; this is a Linear"):
        mup_parameter_groups(nn.Linear(3, 3), 48, 0.01)


def test_base_width_is_standard_training_to_the_bit() -> None:
    plain = initialize(PixArtTransformer(BASE), 3)
    ours = initialize_mup(PixArtTransformer(BASE), 3, BASE.hidden, table_std=BASE.hidden ** -0.5)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), ours.parameters(), strict=True))
    losses = steps(plain, torch.optim.AdamW(plain.parameters(), lr=0.003, weight_decay=0.1), 4)
    assert losses == steps(ours, torch.optim.AdamW(mup_parameter_groups(ours, 48, 0.003, 0.1)), 4)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), ours.parameters(), strict=True))


@pytest.mark.parametrize("width", [96, 192, 144])
@pytest.mark.parametrize("epsilon", [1e-8, 1e-3])
def test_folded_readout_trains_like_the_explicit_multiplier(width: int, epsilon: float) -> None:
    """A large epsilon shows a wrong rule for it, decay a wrong rule for that. Powers of two agree to the bit."""
    multiplier, exact = width / 48, width != 144
    folded = network(width)
    nn.init.normal_(folded.final_layer.linear.weight, std=0.02 / multiplier)
    explicit = copy.deepcopy(folded)
    explicit.final_layer.linear = Readout(folded.final_layer.linear, multiplier)
    groups = explicit_groups(explicit, multiplier, 0.01, 0.1)
    theirs = steps(explicit, torch.optim.AdamW(groups, eps=epsilon), 5)
    ours = steps(folded, torch.optim.AdamW(mup_parameter_groups(folded, 48, 0.01, 0.1, epsilon)), 5)
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), **tolerance)
    torch.testing.assert_close(folded.final_layer.linear.weight * multiplier, explicit.final_layer.linear.weight,
                               **tolerance)
    torch.testing.assert_close(folded.blocks[0].mlp.fc1.weight, explicit.blocks[0].mlp.fc1.weight, **tolerance)


def test_training_equals_that_of_the_mup_package() -> None:
    mup = pytest.importorskip("mup", reason="the mup package is not installed; it is an oracle only")
    ours_model = network(192)
    theirs = copy.deepcopy(ours_model)
    theirs.final_layer.linear = mup.MuReadout(192, ours_model.final_layer.linear.out_features)
    theirs.final_layer.linear.load_state_dict(ours_model.final_layer.linear.state_dict())        # the weight is zero
    narrow, wide = (PixArtTransformer(at_width(BASE, width)) for width in (48, 96))
    mup.set_base_shapes(theirs, narrow, delta=wide, rescale_params=False, do_assert=False)
    reference = steps(theirs, mup.MuAdamW(theirs.parameters(), lr=0.01, weight_decay=0.1, eps=1e-5), 5)
    ours = steps(ours_model, torch.optim.AdamW(mup_parameter_groups(ours_model, 48, 0.01, 0.1, 1e-5)), 5)
    assert ours == reference


def test_starting_weights_have_the_stated_deviations() -> None:
    model = network(768, config=replace(BASE, depth=1))
    expected = {"x_embedder.proj.weight": (2 / (48 + 16)) ** 0.5, "t_embedder.mlp.0.weight": 0.02,
                "y_embedder.y_proj.fc1.weight": 0.02, "t_embedder.mlp.2.weight": 0.02 / 4, "t_block.1.weight": 0.02 / 4,
                "y_embedder.y_proj.fc2.weight": 0.02 / 4, "csize_embedder.mlp.2.weight": 0.02 / 4,
                "blocks.0.attn.qkv.weight": (2 / (4 * 768)) ** 0.5, "blocks.0.mlp.fc2.weight": (2 / (5 * 768)) ** 0.5,
                "blocks.0.scale_shift_table.weight": 0.02, "final_layer.scale_shift_table.weight": 0.02}
    parameters = dict(model.named_parameters())
    for name, deviation in expected.items():
        assert parameters[name].std().item() == pytest.approx(deviation, rel=0.05), name
    for name in ("blocks.0.cross_attn.proj.weight", "final_layer.linear.weight", "blocks.0.mlp.fc1.bias"):
        assert not parameters[name].any(), name


def activations(width: int, mup: bool, seed: int) -> dict[str, float]:
    """Mean absolute outputs of some layers after three steps of Adam at one rate."""
    model = PixArtTransformer(at_width(BASE, width))
    if mup:
        groups = mup_parameter_groups(initialize_mup(model, seed, 48), 48, 0.003)
    else:
        groups = [{"params": list(initialize(model, seed).parameters()), "lr": 0.003}]
    steps(model, torch.optim.AdamW(groups, weight_decay=0), 3)
    sizes: dict[str, float] = {}
    for name in ("t_block", "y_embedder", "blocks.0.attn", "blocks.0.cross_attn", "final_layer"):
        model.get_submodule(name).register_forward_hook(
            lambda module, given, output, name=name: sizes.__setitem__(name, output.abs().mean().item()))
    with torch.no_grad():
        model(**inputs()[0])
    return sizes


def test_activations_ignore_the_width_under_mup_and_grow_without() -> None:
    """The coordinate check of Tensor Programs V over m = 1, 2, 4."""
    def sizes(mup: bool, name: str) -> list[float]:
        return [sum(run[name] for run in measured[mup, width]) / 3 for width in (48, 96, 192)]

    measured = {(mup, width): [activations(width, mup, seed) for seed in range(3)]
                for mup in (True, False) for width in (48, 96, 192)}
    for name in measured[True, 48][0]:
        flat, (one, two, four) = sizes(True, name), sizes(False, name)
        assert max(flat) / min(flat) < 1.35, (name, flat)
        assert four > two > one and four > 1.5 * one, (name, one, two, four)


def test_width_grows_by_heads() -> None:
    assert at_width(BASE, 192) == replace(BASE, hidden=192, heads=8)
    with pytest.raises(ValueError, match="100 is not a multiple of the head width 24.*96 or 120"):
        at_width(BASE, 100)
    with pytest.raises(ValueError, match="36 is not a multiple of the head width 24"):
        mup_parameter_groups(network(96), 36, 0.01)


def test_base_shapes_name_widths_and_nothing_else() -> None:
    shapes = base_shapes(at_width(VARIANTS["alpha-256"], 576), 288)
    assert len(shapes) == 15 * 28 + 15        # as in the published L28_width288.bsh
    assert shapes["blocks.27.attn.qkv.weight"] == [864, 288] and shapes["t_block.1.bias"] == [1728]
    assert shapes["x_embedder.proj.weight"] == [288, None, None, None]
    assert shapes["y_embedder.y_proj.fc1.weight"] == [288, None]
    assert shapes["final_layer.linear.weight"] == [None, 288] and shapes["final_layer.linear.bias"] == [None]
    assert shapes["blocks.3.scale_shift_table"] == [None, 288]
    assert {name for name, kind in parameter_kinds(BASE, 48).items() if kind == "readout"} == {
        "final_layer.linear.weight"}


def test_base_shape_file_returns_its_width(tmp_path: Path) -> None:
    path = write_base_shapes(tmp_path / "mini.bsh", at_width(BASE, 192), 48)
    assert read_base_width(path, at_width(BASE, 384)) == 48
    assert [file.name for file in tmp_path.iterdir()] == ["mini.bsh"]


def test_base_shape_files_are_those_of_the_mup_package(tmp_path: Path) -> None:
    mup = pytest.importorskip("mup", reason="the mup package is not installed; it is an oracle only")
    theirs = {name: [dim.base_dim for dim in shape]
              for name, shape in mup.shape.load_base_shapes(write_base_shapes(tmp_path / "a.bsh", BASE, 48)).items()}
    assert theirs == base_shapes(BASE, 48)
    narrow, wide = (PixArtTransformer(at_width(BASE, width)) for width in (48, 96))
    made = mup.make_base_shapes(narrow, wide)
    mup.shape.save_base_shapes({name.replace("table.weight", "table"): shape for name, shape in made.items()},
                               tmp_path / "b.bsh")
    assert read_base_width(tmp_path / "b.bsh", at_width(BASE, 96)) == 48


def test_wrong_base_shape_files_are_refused_with_the_difference(tmp_path: Path) -> None:
    path = write_base_shapes(tmp_path / "deep.bsh", replace(BASE, depth=3), 48)
    with pytest.raises(ValueError, match=r"15 entries do not fit.*2 blocks.*blocks\.2\.attn\.proj\.bias.*deep.bsh"):
        read_base_width(path, BASE)
    path.write_text("- 1\n- 2\n")
    with pytest.raises(ValueError, match="does not say the base width"):
        read_base_width(path, BASE)
    path.write_text("a: [1\nb")
    with pytest.raises(ValueError, match="not a base-shape file"):
        read_base_width(path, BASE)
