"""The transformer equals diffusers' PixArtTransformer2DModel on random weights."""
from dataclasses import replace

import pytest
import torch

from pixart.checkpoint import to_diffusers
from pixart.config import VARIANTS, PixArtConfig
from pixart.model.transformer import PixArtTransformer

SMALL = PixArtConfig(depth=2, hidden=48, heads=4, caption_width=20, caption_tokens=9)


def pair(config: PixArtConfig):
    """Our model and diffusers', with the same random weights."""
    from diffusers import PixArtTransformer2DModel
    torch.manual_seed(0)
    ours = PixArtTransformer(config).eval()
    if config.depth < 5:
        for parameter in ours.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    theirs = PixArtTransformer2DModel(
        num_attention_heads=config.heads, attention_head_dim=config.hidden // config.heads, in_channels=4,
        out_channels=8,
        num_layers=config.depth, cross_attention_dim=config.hidden, sample_size=2 * config.base_size,
        caption_channels=config.caption_width, interpolation_scale=config.position_scale,
        use_additional_conditions=config.micro_conditioning).eval()
    reference = {k.replace("_table.weight", "_table"): v for k, v in ours.state_dict().items()}
    theirs.load_state_dict(to_diffusers(reference), strict=True)
    return ours, theirs


@torch.no_grad()
def worst_difference(ours, theirs, h: int, w: int, lengths: list[int] | None, tokens: int) -> tuple[float, float]:
    """Largest absolute difference, and largest value, of one forward pass with different everything per row."""
    config = ours.config
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(2, 4, h, w, generator=generator)
    context = torch.randn(2, tokens, config.caption_width, generator=generator)
    time = torch.tensor([999.0, 17.0])
    size, aspect = torch.tensor([[8.0 * h, 8.0 * w], [512.0, 300.0]]), torch.tensor([h / w, 1.7])
    mask = None if lengths is None else torch.arange(tokens)[None] < torch.tensor(lengths)[:, None]
    extra = {"resolution": size, "aspect_ratio": aspect[:, None]} if config.micro_conditioning else {
        "resolution": None, "aspect_ratio": None}
    want = theirs(latent, encoder_hidden_states=context, timestep=time, added_cond_kwargs=extra,
                  encoder_attention_mask=None if mask is None else mask.float(), return_dict=False)[0]
    got = ours(latent, time, context, mask, size, aspect, learned_variance=True)
    return (got - want).abs().max().item(), want.abs().max().item()


@pytest.mark.parametrize("grid", [(16, 16), (12, 20), (6, 34)])
@pytest.mark.parametrize("lengths", [None, [9, 9], [9, 2], [1, 5]])
@pytest.mark.parametrize("micro", [True, False])
def test_small_models(grid, lengths, micro):
    ours, theirs = pair(replace(SMALL, micro_conditioning=micro))
    difference, largest = worst_difference(ours, theirs, *grid, lengths, 9)
    assert difference <= 1e-5 * max(1.0, largest)


@pytest.mark.parametrize("base_size, scale", [(16, 0.5), (32, 1.0), (64, 2.0), (128, 4.0)])
def test_position_scales(base_size, scale):
    ours, theirs = pair(replace(SMALL, base_size=base_size, position_scale=scale, micro_conditioning=False))
    difference, largest = worst_difference(ours, theirs, 10, 14, [9, 4], 9)
    assert difference <= 1e-5 * max(1.0, largest)


@pytest.mark.slow
def test_full_size():
    """611 million random parameters, 256 px: relative difference up to 1e-5."""
    ours, theirs = pair(VARIANTS["alpha-1024"])
    difference, largest = worst_difference(ours, theirs, 32, 32, [120, 20], 120)
    assert difference <= 1e-5 * largest
