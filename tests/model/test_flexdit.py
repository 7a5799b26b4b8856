"""FlexDiT: what conversion keeps to the bit, what each segment computes, how density follows grid and timestep."""
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixart.config import KVCompression, PixArtConfig
from pixart.model.flexdit import FlexDiT, MergeBlock, PoolingBlock, RecoverBlock, average_pool, copy_up
from pixart.model.flexdit_config import Density, FlexDiTConfig, Segments
from pixart.model.policy import Policy, Step
from pixart.model.to_flexdit import convert_state_dict, to_flexdit
from pixart.model.transformer import PixArtTransformer

CONFIG = PixArtConfig(depth=8, hidden=48, heads=4, caption_width=16, caption_tokens=8, base_size=4)
FULL = Density(0.0, 0.0)            # as many sparse tokens as there are tokens
GRID = (4, 6)


def filled(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) / max(1, tensor[0].numel()) ** 0.5)
    return module.eval().requires_grad_(False)


def model(**changes: object) -> PixArtTransformer:
    return filled(PixArtTransformer(replace(CONFIG, **changes)))


def flexdit(density: Density | None = None, seed: int = 3, **changes: object) -> FlexDiT:
    """Random weights everywhere, as after training."""
    return filled(FlexDiT(FlexDiTConfig.of(replace(CONFIG, **changes), density=density)), seed)


def given(*timesteps: float, height: int = 8, width: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    rows, generator = len(timesteps), torch.Generator().manual_seed(1)
    return (torch.randn(rows, 4, height, width, generator=generator), torch.tensor(timesteps),
            torch.randn(rows, 5, 16, generator=generator))


def tokens(count: int = 24, seed: int = 5) -> Tensor:
    return torch.randn(2, count, 48, generator=torch.Generator().manual_seed(seed))


def block_inputs() -> tuple[Tensor, Tensor]:
    """Text and modulation."""
    return tokens(5, 6), torch.randn(2, 6, 48, generator=torch.Generator().manual_seed(8))


# -- conversion --------------------------------------------------------------------------------------------------------

def test_freshly_converted_nothing_of_the_sparse_tokens_is_mixed_in_to_the_bit():
    """W1 = 0, W2 = I: Xm is X."""
    recover = to_flexdit(model()).blocks[5]
    assert isinstance(recover, RecoverBlock)
    assert torch.equal(recover.mix(tokens(), tokens(6), GRID, (2, 3)), tokens())


@pytest.mark.parametrize("qk_norm", [False, True])
def test_with_all_tokens_the_merge_block_is_the_block_it_was_made_of(qk_norm):
    network = model(qk_norm=qk_norm)
    merge, (text, modulation) = to_flexdit(network).blocks[1], block_inputs()
    assert isinstance(merge, MergeBlock)
    want = network.blocks[1](tokens(), text, modulation, GRID)
    torch.testing.assert_close(merge(tokens(), text, modulation, GRID, GRID), want)


def test_with_all_tokens_and_silent_sparse_blocks_it_is_the_model_it_was_made_of():
    """Then the recover block's queries and keys come from the same tokens, and it is the block it was made of."""
    network = model()
    for index in range(4):
        silence(network.blocks[index])
    flex = to_flexdit(network, Segments(0, 1, 3, 1, 2), FULL)
    torch.testing.assert_close(flex(*given(900.0, 100.0)), network(*given(900.0, 100.0)), rtol=1e-5, atol=1e-5)


def silence(block: nn.Module) -> None:
    """Its gates and its cross-attention are zero: x comes out as it went in."""
    for layer in (block.attn.proj, block.cross_attn.proj, block.mlp.fc2):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def test_a_pooling_block_is_one_whose_queries_are_zero():
    network = model()
    qkv = network.blocks[0].attn.qkv
    qkv.weight[:48], qkv.bias[:48] = 0, 0
    pooling, (text, modulation) = to_flexdit(network).blocks[0], block_inputs()
    assert isinstance(pooling, PoolingBlock)
    want = network.blocks[0](tokens(), text, modulation, GRID)
    torch.testing.assert_close(pooling(tokens(), text, modulation, GRID), want)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_conversion_takes_every_tensor_but_queries_and_keys_of_pooling_blocks(qk_norm):
    network = model(qk_norm=qk_norm)
    config = FlexDiTConfig.of(network.config)
    converted = convert_state_dict(network.state_dict(), config)
    assert converted.keys() == FlexDiT(config, device="meta").state_dict().keys()
    lost = sum(t.numel() for t in network.state_dict().values()) + 2 * (48 * 48 + 48) \
        - sum(t.numel() for t in converted.values())
    norms = 4 * 48 if qk_norm else 0
    assert lost == 2 * 48 * 49 + norms
    for name, tensor in network.state_dict().items():
        if ".attn.qkv." in name and int(name.split(".")[1]) in (1, 5):
            head, tail = name.split("qkv.")
            assert torch.equal(torch.cat([converted[f"{head}q.{tail}"], converted[f"{head}kv.{tail}"]]), tensor)


def test_without_groups_and_pooling_it_is_the_model_itself_to_the_bit():
    network = model()
    assert torch.equal(to_flexdit(network, Segments(0, 0, 0, 0, 8))(*given(400.0)), network(*given(400.0)))


def test_a_converted_model_trains_or_samples_as_the_one_it_was_made_of():
    assert to_flexdit(model().train()).blocks[1].training and not to_flexdit(model()).blocks[1].training


def test_the_published_layout():
    roles = Segments.for_depth(28).roles
    assert Segments.for_depth(28) == Segments() and len(roles) == 28
    assert [i for i, role in enumerate(roles) if role == "merge"] == [2, 8, 14, 20]
    assert [i for i, role in enumerate(roles) if role == "recover"] == [6, 12, 18, 24]
    assert roles[:2] == ("pooling",) * 2 and roles[-2:] == ("dense",) * 2
    assert Segments.for_depth(42).depth == 42 and Segments.for_depth(8).depth == 8
    assert (Segments.for_depth(15).pooling, Segments.for_depth(16).pooling) == (1, 2)


# -- what is computed --------------------------------------------------------------------------------------------------

def test_a_pass_is_what_the_method_says():
    """Written out by hand, on a grid that is not square."""
    network, (latent, t, context) = flexdit(Density(0.5, 0.5)), given(300.0, 300.0)
    inputs, sparse = network.embed(latent, t, context, None, None), (3, 4)
    text, modulation = inputs.text, inputs.modulation
    x = network.blocks[0](inputs.tokens, text, modulation, GRID)
    few = F.adaptive_avg_pool2d(x.transpose(1, 2).unflatten(2, GRID), sparse).flatten(2).transpose(1, 2)
    few = by_hand(network.blocks[1], few, x, text, modulation)
    for block in network.blocks[2:5]:
        few = block(few, text, modulation, sparse)
    recover, rows = network.blocks[5], [[(i * 3 // 4) * 4 + j * 4 // 6 for j in range(6)] for i in range(4)]
    mixed = recover.from_sparse(few[:, torch.tensor(rows).flatten()]) + recover.from_dense(x)
    x = by_hand(recover, mixed, few, text, modulation)
    for block in network.blocks[6:]:
        x = block(x, text, modulation, GRID)
    want = network.unpatchify(network.final_layer(x, inputs.time), GRID)[:, :4]
    torch.testing.assert_close(network(latent, t, context), want)


def by_hand(block: nn.Module, x: Tensor, source: Tensor, text: Tensor, modulation: Tensor) -> Tensor:
    rows = [each[:, None] for each in (block.scale_shift_table.weight + modulation).unbind(1)]
    normed = [F.layer_norm(each, (48,), eps=1e-6) for each in (x, source)]
    asking, asked = (each * (1 + rows[1]) + rows[0] for each in normed)
    q, (k, v) = block.attn.q(asking), block.attn.kv(asked).chunk(2, -1)
    q, k, v = (each.unflatten(2, (4, 12)).transpose(1, 2) for each in (q, k, v))
    found = ((q @ k.transpose(2, 3)) / 12 ** 0.5).softmax(-1) @ v
    x = x + rows[2] * block.attn.proj(found.transpose(1, 2).flatten(2))
    x = x + block.cross_attn(x, text, None, None)
    return x + rows[5] * block.mlp(F.layer_norm(x, (48,), eps=1e-6) * (1 + rows[4]) + rows[3])


def test_pooling_and_copying_follow_rows_and_columns():
    x = torch.arange(24.0).view(1, 24, 1)
    assert torch.equal(average_pool(x, GRID, GRID), x) and torch.equal(copy_up(x, GRID, GRID), x)
    assert average_pool(x, GRID, (2, 3)).flatten().tolist() == [3.5, 5.5, 7.5, 15.5, 17.5, 19.5]
    assert copy_up(torch.arange(2.0).view(1, 2, 1), (1, 2), (2, 4)).flatten().tolist() == [0, 0, 1, 1] * 2


def test_rows_of_other_timesteps_are_as_if_they_came_alone():
    network = flexdit(Density(0.3, 0.8))
    latent, t, context = given(999.0, 100.0, 600.0, 100.0)
    assert len({network.config.density.grid(GRID, each) for each in t.tolist()}) == 3
    alone = [network(latent[i:i + 1], t[i:i + 1], context[i:i + 1]) for i in range(4)]
    torch.testing.assert_close(network(latent, t, context), torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_a_padded_prompt_is_as_without_padding():
    network, (latent, t, context) = flexdit(), given(900.0, 100.0)
    mask = torch.tensor([[True] * 5 + [False] * 3] * 2)
    padded = torch.cat([context, 9 * torch.ones(2, 3, 16)], 1)
    torch.testing.assert_close(network(latent, t, padded, mask), network(latent, t, context), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 14), (13, 9)])
def test_any_size(height, width):
    assert flexdit()(*given(999.0, 1.0, height=height, width=width)).shape == (2, 4, height, width)


def test_recomputation_gives_the_same_gradients():
    network, found, runs = flexdit().requires_grad_(True), [], []
    for block in network.blocks:
        block.register_forward_pre_hook(lambda *_: runs.append(network.recompute))
    for network.recompute in (False, True):
        network.zero_grad()
        network(*given(900.0, 100.0)).square().mean().backward()
        found.append([p.grad.clone() for p in network.parameters()])
    assert runs.count(True) == 2 * runs.count(False) > 0            # forward, and once more on the way back
    assert all(torch.equal(a, b) and a.abs().sum() > 0 for a, b in zip(*found))


def test_the_step_of_a_sampling_says_the_timestep():
    network, (latent, t, context) = flexdit(Density(0.3, 0.8)), given(600.0, 600.0)
    step = Step(0, 2, 600.0, (0, 1), "run")
    assert torch.equal(network(latent, t, context, step=step), network(latent, t, context))


# -- density -----------------------------------------------------------------------------------------------------------

def test_the_published_rate_is_a_line_behind_a_quarter():
    rate = Density(0.61, 0.86, pieces=0).rate
    assert rate(0) == rate(249.9) == 0.61 and rate(1000) == pytest.approx(0.86)
    assert rate(250) == pytest.approx(0.61) and rate(250.001) == pytest.approx(0.61, abs=1e-5)
    for t in (300, 512, 777):
        assert rate(t) == pytest.approx(((4000 - 4 * t) * 0.61 + (4 * t - 1000) * 0.86) / 3000)


def test_pieces_meet_the_line_at_their_ends():
    rate = Density(0.6, 0.9, pieces=3).rate
    assert [round(rate(t), 6) for t in (0, 249, 250, 499, 500, 749, 750, 999, 1000)] == \
        [0.6, 0.6, 0.7, 0.7, 0.8, 0.8, 0.9, 0.9, 0.9]


@pytest.mark.parametrize(("rate", "side", "sparse"), [
    (0.61, 32, 20), (0.86, 32, 12), (0.90, 32, 10), (0.96, 32, 6), (0.61, 16, 10), (0.86, 16, 6), (0.44, 16, 12)])
def test_the_published_rates_give_the_published_grids(rate, side, sparse):
    assert Density(rate, rate).grid((side, side), 500) == (sparse, sparse)


def test_stretches_of_equal_density_start_where_the_rate_changes():
    assert Density().starts == (0, 250, 500, 750) and Density(pieces=0).starts == (0, 250)
    assert Density(0.5, 0.5).starts == (0,)


def test_density_grows_as_noise_goes():
    sizes = [h * w for h, w in (Density().grid((24, 40), t) for t in range(999, -1, -50))]
    assert sizes == sorted(sizes) and len(set(sizes)) == 4


# -- what is refused ---------------------------------------------------------------------------------------------------

def test_a_density_that_leaves_no_token_is_refused():
    with pytest.raises(ValueError, match="r_max is 1, a density that leaves no token"):
        Density(0.5, 1.0)
    with pytest.raises(ValueError, match=r"a density of 0.04 leaves no token of 2 x 9; a side must have 3 tokens"):
        Density(0.96, 0.96).grid((2, 9), 0)
    assert Density(0.96, 0.96).grid((3, 9), 0) == (1, 2)
    with pytest.raises(ValueError, match="r_min is 0.9, r_max 0.5"):
        Density(0.9, 0.5)


def test_segments_of_another_depth_are_refused():
    with pytest.raises(ValueError, match="the segments have 28 blocks, the model 8"):
        to_flexdit(model(), Segments())
    with pytest.raises(ValueError, match="5 blocks are too few"):
        to_flexdit(model(depth=5))


def test_what_cannot_become_one_is_refused():
    with pytest.raises(ValueError, match="does not go with key/value compression"):
        to_flexdit(model(kv_compression=KVCompression("ave", 2, (0,))))
    with pytest.raises(ValueError, match="a FlexDiT already"):
        to_flexdit(to_flexdit(model()))


def test_control_and_policies_are_refused():
    with pytest.raises(ValueError, match="a FlexDiT cannot follow a ControlNet"):
        flexdit()(*given(500.0), control=[None])
    with pytest.raises(ValueError, match="a FlexDiT takes no cache"):
        flexdit()(*given(500.0), policies=[Policy()])
