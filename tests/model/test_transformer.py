"""What the transformer promises whatever the weights: exactness, any size, clear refusals."""
import copy
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pixart.config import VARIANTS, KVCompression, PixArtConfig
from pixart.model.attention import matmul_attention, score_bias, sdpa, thin_out
from pixart.model.block import ScaleShiftTable
from pixart.model.embedders import sinusoid
from pixart.model.policy import Policy
from pixart.model.positions import position_table
from pixart.model.transformer import PixArtTransformer

TINY = PixArtConfig(depth=3, hidden=48, heads=4, caption_width=10, caption_tokens=8, base_size=8, position_scale=1.0)


@pytest.fixture(scope="module")
def model() -> PixArtTransformer:
    torch.manual_seed(0)
    model = PixArtTransformer(TINY).eval().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def inputs(batch: int = 2, h: int = 8, w: int = 12, tokens: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {"latent": torch.randn(batch, 4, h, w, generator=generator),
            "timestep": torch.linspace(900, 100, batch), "context": torch.randn(batch, tokens, 10, generator=generator)}


@pytest.mark.parametrize("mode", ["conv", "ave"])
def test_compression_that_leaves_no_key_is_refused(mode):
    """Attention to nothing would silently be zero."""
    config = replace(TINY, kv_compression=KVCompression(mode, 2, (1,)))
    compressed = PixArtTransformer(config).eval().requires_grad_(False)
    with pytest.raises(ValueError, match=f"'{mode}' by 2 leaves no token of 1 x 4; choose sides of 32 pixels"):
        compressed(**inputs(h=2, w=8))
    assert compressed(**inputs(h=6, w=4)).isfinite().all()


def test_masked_padding_equals_no_padding(model):
    given = inputs()
    padded = dict(given, context=torch.cat([given["context"], 50 * torch.randn(2, 3, 10)], 1),
                  mask=torch.tensor([[True] * 5 + [False] * 3] * 2))
    torch.testing.assert_close(model(**padded), model(**given), rtol=1e-5, atol=1e-5)


def test_a_mask_is_prepared_once_a_pass(model):
    """Not in each block; with booleans a block still does the same."""
    class Count(TorchDispatchMode):
        made = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            Count.made += "masked_fill" in str(func)
            return func(*args, **(kwargs or {}))

    given = inputs(2, tokens=5)
    given["mask"] = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    with Count():
        model(**given)
    assert Count.made == 1 < len(model.blocks)
    x, text, attention = torch.randn(2, 6, 48), torch.randn(2, 5, 48), model.blocks[0].cross_attn
    want = attention(x, text, score_bias(given["mask"], torch.float32), None)
    assert torch.equal(attention(x, text, given["mask"], None), want)
    exact, x, text = copy.deepcopy(attention).double(), x.double(), text.double()    # whatever the order of summation
    together = exact(x, text, score_bias(given["mask"], torch.float64), None)
    torch.testing.assert_close(together[1:], exact(x[1:], text[1:, :3], None, None), rtol=0, atol=1e-12)


def test_batch_equals_single_images(model):
    """Different lengths in one batch give what each image gives alone."""
    given = inputs(batch=3)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3, [True] + [False] * 4])
    together = model(**given, mask=mask)
    for row, length in enumerate((5, 2, 1)):
        alone = {name: value[row:row + 1] for name, value in given.items()}
        alone["context"] = alone["context"][:, :length]
        torch.testing.assert_close(together[row:row + 1], model(**alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("h, w", [(2, 2), (3, 3), (7, 10), (9, 5), (135, 3), (2, 64)])
def test_any_latent_size_comes_back_in_its_size(model, h, w):
    output = model(**inputs(h=h, w=w))
    assert output.shape == (2, 4, h, w) and output.isfinite().all()


def test_odd_size_is_border_repetition_then_crop(model):
    given = inputs(h=7, w=9)
    padded = torch.nn.functional.pad(given["latent"], (0, 1, 0, 1), mode="replicate")
    extra = {"size": torch.tensor([[56.0, 72.0]] * 2), "aspect": torch.tensor([7 / 9] * 2)}
    want = model(padded, given["timestep"], given["context"], **extra)[:, :, :7, :9]
    assert torch.equal(model(**given), want)


def test_control_enters_before_its_block(model):
    """A residual at block 2 equals adding it to that block's input by hand; None and missing entries do nothing."""
    residual = torch.randn(2, 24, 48)

    class AddBeforeLast(Policy):
        def block(self, index, p, go):
            return go(p.with_x(p.x + residual) if index == 2 else p)

    assert torch.equal(model(**inputs(), control=[None, None, residual]), model(**inputs(), policies=[AddBeforeLast()]))
    assert torch.equal(model(**inputs(), control=[None]), model(**inputs()))


def test_size_defaults_to_the_latent(model):
    given = inputs()
    explicit = model(**given, size=torch.tensor([[64.0, 96.0]] * 2), aspect=torch.tensor([8 / 12] * 2))
    assert torch.equal(model(**given), explicit)
    assert not torch.allclose(explicit, model(**given, size=torch.tensor([[640.0, 96.0]] * 2)))


def test_bf16_sees_exact_timesteps():
    """999 and 1000 are one number in bf16; the embedding must still tell them apart."""
    model = PixArtTransformer(TINY, dtype=torch.bfloat16).eval()
    given = {name: value.bfloat16() if name != "timestep" else value for name, value in inputs(batch=1).items()}
    a, b = (model.embed_time(torch.tensor([t]), given["latent"], None, None) for t in (999.0, 1000.0))
    assert not torch.equal(a, b)
    assert sinusoid(torch.tensor([999.0], dtype=torch.float64)).dtype == torch.float32      # some devices have no other


@pytest.mark.parametrize("h, w, base, scale, row, want", [
    (32, 32, 32, 1.0, 34, {0: 0.909297, 288: -0.416147, 576: 0.841471, 864: 0.540302}),
    (48, 84, 64, 2.0, 86, {0: 0.690301, 576: 0.618370}),
    (16, 16, 16, 1.0, 1, {0: 0.841471}), (16, 16, 16, 0.5, 1, {0: 0.909297}),
    (64, 64, 64, 2.0, 1, {0: 0.479426}), (128, 128, 128, 4.0, 1, {0: 0.247404}),
])
def test_position_table_values(h, w, base, scale, row, want):
    """Row (1, 2) of two grids, and sin(1 / scale) of every published variant."""
    table = position_table(h, w, 1152, base, scale)
    for channel, value in want.items():
        assert table[row, channel].item() == pytest.approx(value, abs=1e-6)


def test_position_tables_are_computed_in_float64_and_rounded_once():
    """From coordinates in float32, as the official code has them."""
    coordinates = (torch.arange(48, dtype=torch.float32) / (48 / 64) / 2.0).double()
    angles = coordinates[:, None] * 10000.0 ** (-torch.arange(288, dtype=torch.float64) / 288)
    table = position_table(1, 48, 1152, 64, 2.0)
    assert torch.equal(table[:, :576], torch.cat([angles.sin(), angles.cos()], dim=1).float())


def test_both_attentions_agree():
    q, k, v = torch.randn(3, 2, 6, 48).unbind()
    for mask in (None, score_bias(torch.tensor([[True] * 6, [True] * 2 + [False] * 4]), torch.float32)):
        torch.testing.assert_close(matmul_attention(q, k, v, 4, mask, None), sdpa(q, k, v, 4, mask, None))


def test_gradient_recomputation_changes_nothing():
    torch.manual_seed(0)
    model = PixArtTransformer(TINY)
    grads, runs = [], []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda *_: runs.append(model.recompute))
    for recompute in (False, True):
        model.recompute = recompute
        model.zero_grad()
        model(**inputs(), learned_variance=True).square().mean().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads))
    assert (runs.count(False), runs.count(True)) == (3, 6)          # forward, and once more on the way back


def test_reference_table_names_load_strictly(model):
    state = {name.replace("scale_shift_table.weight", "scale_shift_table"): value
             for name, value in model.state_dict().items()}
    assert "blocks.0.scale_shift_table" in state
    fresh = PixArtTransformer(TINY)
    fresh.load_state_dict(state, strict=True)
    assert torch.equal(fresh.eval()(**inputs()), model(**inputs()))


@pytest.mark.parametrize("change, words", [
    ({"context": torch.zeros(2, 5, 11)}, r"\(2, 5, 11\); this PixArt model takes \(batch, tokens, 10\)"),
    ({"context": torch.zeros(2, 10)}, r"\(2, 10\); this PixArt model takes \(batch, tokens, 10\)"),
    ({"context": torch.zeros(1, 5, 10)}, r"latent 2, timestep \(2,\), text 1"),
    ({"latent": torch.zeros(2, 8, 8, 8)}, r"\(2, 8, 8, 8\); this PixArt model takes \(batch, 4, height"),
    ({"latent": torch.zeros(4, 8, 8)}, r"latent has shape \(4, 8, 8\)"),
    ({"latent": torch.zeros(2, 4, 1, 8)}, "height >= 2"), ({"latent": torch.zeros(2, 4, 8, 1)}, "width >= 2"),
    ({"timestep": torch.zeros(3)}, r"latent 2, timestep \(3,\), text 2"),
    ({"mask": torch.ones(2, 5)}, r"\(2, 5\) torch.float32; expected \(2, 5\) bool"),
    ({"mask": torch.ones(2, 4, dtype=torch.bool)}, r"\(2, 4\) torch.bool; expected \(2, 5\) bool"),
    ({"size": torch.ones(1, 2)}, r"size is \(1, 2\); expected \(2, 2\)"),
    ({"aspect": torch.ones(1)}, r"aspect is \(1,\); expected \(2,\)"),
    ({"control": [None] * 4}, "4 residuals"),
])
def test_wrong_shapes_are_named(model, change, words):
    with pytest.raises(ValueError, match=words):
        model(**(inputs() | change))


def test_unknown_argument_fails(model):
    with pytest.raises(TypeError):
        model(**inputs(), strength=1.0)


@pytest.mark.parametrize("fields, words", [
    ({"hidden": 50, "heads": 4}, "50.*4 heads"), ({"latent_space": "flux"}, "flux"), ({"depth": 0}, "positive"),
    ({"hidden": 54, "heads": 9}, "54 is not a multiple of 4"), ({"channels": 0}, "positive"),
    ({"hidden": 64, "heads": 4}, "64 is not a multiple of 3"), ({"base_size": 0}, "base size 0 and"),
    ({"position_scale": 0.0}, "position scale 0.0 must be positive"),
])
def test_impossible_configurations_are_refused(fields, words):
    assert PixArtConfig(hidden=64, heads=4, micro_conditioning=False).hidden == 64
    with pytest.raises(ValueError, match=words):
        PixArtConfig(**fields)


def test_what_the_families_differ_in():
    alpha, sigma = VARIANTS["alpha-512"], VARIANTS["sigma-512"]
    assert (alpha.latent_scale, alpha.caption_tokens, alpha.cleans_captions) == (0.18215, 120, True)
    assert (sigma.latent_scale, sigma.caption_tokens, sigma.cleans_captions) == (0.13025, 300, False)
    assert [VARIANTS[name].resolution for name in ("alpha-256", "alpha-512", "alpha-1024", "sigma-256", "sigma-512",
                                                   "sigma-1024", "sigma-2k")] == [256, 512, 1024] * 2 + [2048]
    assert [name for name, config in VARIANTS.items() if config.micro_conditioning] == ["alpha-1024"]


@pytest.mark.parametrize("mode, factor, words", [("max", 2, "'max'; use conv, ave"), ("ave", 1, "factor is 1")])
def test_impossible_compressions_are_refused(mode, factor, words):
    with pytest.raises(ValueError, match=words):
        KVCompression(mode, factor, (0,))


@pytest.mark.parametrize("mode, h, w, words", [
    ("uniform", 4, 5, "rows and columns divisible by 2; this image has 4 x 5. Choose a size divisible by 32 pixels"),
    ("uniform", 3, 4, "this image has 3 x 4"), ("uniform_every", 3, 5, "this image has 3 x 5 = 15. Choose another")])
def test_a_grid_that_even_compression_does_not_divide_is_refused(mode, h, w, words):
    with pytest.raises(ValueError, match=words):
        thin_out(torch.zeros(1, h * w, 8), (h, w), mode, 2)


def test_modulation_is_added_in_float32_whatever_the_model_computes_in():
    table = ScaleShiftTable(2, 64)
    modulation = torch.randn(3, 2, 64).bfloat16()
    rows = torch.cat(table(modulation), dim=1)
    assert rows.dtype == torch.bfloat16 and torch.equal(rows, (table.weight + modulation.float()).bfloat16())
