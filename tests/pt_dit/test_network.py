"""What PT-DiT promises: the formulas, PixArt as a special case, windows that lose no token, batches, any size."""
from dataclasses import replace

import pytest
import torch
from pt_dit import statement
from pt_dit.tiny_pt_dit import PUBLISHED, TINY, filled, given, model, published_state
from torch.nn import functional as F

from pixart.config import PixArtConfig
from pixart.model.block import PixArtBlock
from pixart.pt_dit.block import PTDiTBlock, Windows
from pixart.pt_dit.config import PTDiTConfig
from pixart.pt_dit.load import load_pt_dit
from pixart.pt_dit.transformer import PTDiT
from pixart.pt_dit.windows import from_windows, proxy_tokens, region_bias, region_mask, shift_windows, to_windows


def tokens(grid: tuple[int, int], width: int = 3) -> torch.Tensor:
    return torch.randn(2, grid[0] * grid[1], width, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("grid, side", [((8, 8), 4), ((4, 12), 4), ((10, 5), 5), ((6, 9), 3), ((3, 2), 1)])
def test_windows_and_shifts_lose_no_token(grid, side):
    x = tokens(grid)
    assert torch.equal(from_windows(to_windows(x, grid, side), grid, side), x)
    assert torch.equal(shift_windows(shift_windows(x, grid, side), grid, side, back=True), x)


def test_a_window_holds_the_tokens_of_its_square():
    x = torch.arange(32.0).view(1, 32, 1)
    assert to_windows(x, (4, 8), 4)[0, 16:, 0].tolist() == [8 * r + c for r in range(4) for c in range(4, 8)]
    windows = to_windows(x, (4, 8), 4)
    assert proxy_tokens(windows, (4, 8), 4, 2)[0, :2, 0].tolist() == [4.5, 6.5]
    assert proxy_tokens(windows, (4, 8), 4, 4)[0, :, 0].tolist() == [13.5, 17.5]


@pytest.mark.parametrize("grid, side", [((8, 12), 4), ((4, 4), 4), ((9, 6), 3)])
def test_shifted_windows_keep_apart_what_was_not_adjacent(grid, side):
    """Tokens of a shifted window see each other exactly where they lay so to each other before the roll too."""
    height, width = grid
    row, column = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    places = torch.stack([row, column], 1)[None].float()                                # (1, N, 2)
    moved = shift_windows(to_windows(places, grid, side), grid, side).view(-1, side * side, 2)  # (W, n, 2)
    inside = torch.cartesian_prod(torch.arange(side), torch.arange(side))               # (n, 2)
    apart = (moved[:, :, None] - moved[:, None] != inside[:, None] - inside).any(-1)    # (W, n, n)
    mask = region_mask(grid, side)
    assert torch.equal(mask, ~apart) and mask.any(-1).all()
    weights = (torch.randn(mask.shape) + region_bias(grid, side, torch.zeros(()))[:, 0]).softmax(-1)
    assert (weights[~mask] == 0).all()


@pytest.mark.parametrize("changes", [{}, {"window": 4, "proxy": 2}, {"shifted": False, "learned_variance": False}],
                         ids=["published", "small proxies", "no shift"])
def test_it_is_the_written_down_formulas(tmp_path, changes):
    """Two rows with timesteps and captions of their own, on a grid that is not square, from a published file."""
    config = replace(PUBLISHED, **changes)
    state = published_state(config)
    torch.save(state, tmp_path / "t2i.pt")
    network = load_pt_dit(tmp_path / "t2i.pt", config=config)
    inputs = given(2, 16, 32, config)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    found = network(**inputs, mask=mask)
    for row, length in enumerate((5, 3)):
        want = statement.velocity(state, inputs["latent"][row], float(inputs["timestep"][row]),
                                  inputs["context"][row, :length], config.heads, config.depth, config.window,
                                  config.proxy, config.shifted)[:config.channels]
        torch.testing.assert_close(found[row].double(), want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))


def test_one_window_without_proxies_and_shift_is_a_pixart_block():
    config = replace(TINY, window=4, shifted=False)
    block = filled(PTDiTBlock(config, torch.nn, model().blocks[0].attn.attend))
    for parameter in block.visual_linear.parameters():
        parameter.data.zero_()
    plain = PixArtBlock(PixArtConfig(depth=2, hidden=32, heads=4, micro_conditioning=False), 0, torch.nn,
                        block.attn.attend)
    plain.load_state_dict({name: tensor for name, tensor in block.state_dict().items()
                           if not name.startswith(("proxy_attn", "visual_"))})
    x, text, modulation = torch.randn(2, 16, 32), torch.randn(2, 5, 32), torch.randn(2, 6, 32)
    found = block(x, text, modulation, Windows((4, 4), None))
    assert torch.equal(found, plain(x, text, modulation, (4, 4)))


def test_a_new_branch_that_starts_at_zero_changes_nothing():
    """Zero behind shifted windows: the same as without them, whatever their attention says."""
    network = model()
    for block in network.blocks:
        for parameter in block.shifted_linear.parameters():
            parameter.data.zero_()
    without = PTDiT(replace(TINY, shifted=False)).eval()
    without.load_state_dict({name: tensor for name, tensor in network.state_dict().items() if "shifted_" not in name})
    assert torch.equal(network(**given()), without(**given()))


def test_every_image_has_its_own_timestep_in_every_window():
    """The published code deals timesteps out window by window; rows of a batch would exchange them."""
    network, inputs = model(), given(3)
    together = network(**inputs)
    for row in range(3):
        alone = network(**{name: value[row:row + 1] for name, value in inputs.items()})
        torch.testing.assert_close(together[row:row + 1], alone, rtol=1e-5, atol=1e-5)


def test_masked_padding_equals_no_padding():
    network, inputs = model(), given()
    padded = {**inputs, "context": torch.cat([inputs["context"], 50 * torch.randn(2, 3, 12)], 1),
              "mask": torch.tensor([[True] * 5 + [False] * 3] * 2)}
    torch.testing.assert_close(network(**padded), network(**inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("height, width", [(2, 2), (3, 7), (8, 8), (10, 17), (9, 40)])
def test_a_size_that_windows_do_not_divide_is_the_border_repeated_and_cropped(height, width):
    network, inputs = model(), given(1, height, width)
    whole = F.pad(inputs["latent"], (0, -width % 8, 0, -height % 8), mode="replicate")
    want = network(**{**inputs, "latent": whole})[:, :, :height, :width]
    assert torch.equal(network(**inputs), want) and want.shape == (1, 4, height, width)


def test_recomputation_changes_no_gradient():
    network, inputs, gradients = filled(PTDiT(TINY)).train(), given(), []
    for recompute in (False, True):
        network.recompute = recompute
        network.zero_grad()
        network(**inputs).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients))


def test_every_weight_learns():
    network = filled(PTDiT(replace(TINY, learned_variance=False))).train()
    network(**given()).square().mean().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in network.parameters())


@pytest.mark.parametrize("changes, told", [
    ({"window": 6, "proxy": 4}, "windows of 6 tokens a side do not divide into proxies of 4"),
    ({"hidden": 40}, "not a multiple of 16"), ({"micro_conditioning": True, "hidden": 48}, "size conditioning"),
    ({"flow_side": 0}, "flow_side is 0"), ({"autoencoder": "vae"}, "unknown autoencoder 'vae'")])
def test_a_configuration_that_cannot_be(changes, told):
    with pytest.raises(ValueError, match=told):
        replace(TINY, **changes)


def test_noise_levels_are_shifted_by_the_ratio_of_sides():
    assert PTDiTConfig().flow_shift(512, 512) == 1
    assert PTDiTConfig().flow_shift(1024, 1024) == 2
    assert PTDiTConfig().flow_shift(512, 2048) == 2


@pytest.mark.parametrize("changes, told", [
    ({"latent": torch.zeros(2, 3, 8, 8)}, r"takes \(batch, 4"), ({"context": torch.zeros(2, 5, 9)}, "tokens, 12"),
    ({"timestep": torch.zeros(1)}, "batch sizes differ"), ({"mask": torch.ones(2, 5)}, "bool")])
def test_wrong_inputs_are_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        model()(**{**given(), **changes})
