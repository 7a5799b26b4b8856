"""Sampling with a transformer in memory: which conditions it is given, and when control is in force."""
import math
from dataclasses import replace

import pytest
import torch

from pixart.config import PixArtConfig
from pixart.control.control_image import ControlImage
from pixart.generation.request import Request
from pixart.generation.sample import AppliedControl, sample
from pixart.model.attention import sdpa
from pixart.model.controlnet import PixArtControlNet
from pixart.model.policy import Policy
from pixart.model.transformer import PixArtTransformer
from pixart.sampling.lcm import lcm, lcm_timesteps
from pixart.sampling.noise import ImageNoise
from pixart.text.encoded import Encoded

CONFIG = PixArtConfig(depth=2, hidden=48, heads=4, caption_width=16, caption_tokens=8, base_size=4, position_scale=1.0)
EDGES = torch.zeros(1, 3, 16, 16)


def transformer() -> PixArtTransformer:
    torch.manual_seed(0)
    model = PixArtTransformer(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def features(rows: int, length: int, seed: int = 0) -> Encoded:
    context = torch.randn(rows, length, CONFIG.caption_width, generator=torch.Generator().manual_seed(seed))
    return Encoded(context, torch.ones(rows, length, dtype=torch.bool), [None] * rows)


def test_the_model_is_told_height_before_width_and_height_over_width():
    """A flipped aspect ratio gives images too, only worse ones; so the sampling is written out here once more."""
    model, caption = transformer(), features(2, 5)
    size, aspect = torch.tensor([[96.0, 40.0]] * 2), torch.tensor([2.4, 2.4])
    noise = ImageNoise([7, 8], (4, 12, 5))

    @torch.no_grad()
    def network(x, t):
        return model(x, t, caption.context, caption.mask, size, aspect)

    want = lcm(network, noise(), lcm_timesteps(2), noise)
    got = sample(model, Request(("a", "b"), height=96, width=40, steps=2, seed=7), caption, features(1, 2))
    assert torch.equal(got, want)
    aspect.copy_(1 / aspect)
    noise = ImageNoise([7, 8], (4, 12, 5))
    assert not torch.allclose(got, lcm(network, noise(), lcm_timesteps(2), noise))


def test_text_without_padding_is_not_masked():
    """Attention without a mask is one kernel; with one, every block converts it first."""
    seen: list[torch.Tensor | None] = []

    def attend(q, k, v, heads, mask, options):
        seen.append(mask)
        return sdpa(q, k, v, heads, mask, options)

    model = PixArtTransformer(CONFIG, attend=attend).eval()
    model.load_state_dict(transformer().state_dict())
    caption, request = features(2, 5), Request(("a", "b"), height=32, width=32, steps=1)
    whole = sample(model, request, caption, caption)
    assert seen == [None] * len(seen) and len(seen) == 2 * CONFIG.depth
    longer = Encoded(torch.cat([caption.context, torch.randn(2, 2, 16)], 1), torch.arange(7).expand(2, -1) < 5, [])
    seen.clear()
    torch.testing.assert_close(sample(model, request, longer, longer), whole)
    assert sum(mask is not None for mask in seen) == CONFIG.depth


def test_the_unconditional_half_comes_first():
    """Guidance 0 is the negative prompt alone, guidance 1 the prompt alone."""
    model, caption, null = transformer(), features(1, 5), features(1, 3, seed=1)

    def draw(guidance: float, text: Encoded) -> torch.Tensor:
        request = Request(("a",), height=32, width=32, sampler="dpm", steps=3, guidance=guidance)
        return sample(model, request, text, null)
    torch.testing.assert_close(draw(0.0, caption), draw(1.0, null), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(draw(0.0, caption), draw(1.0, caption))


def test_control_goes_on_with_its_images_where_guidance_ends():
    class Unguided(Policy):
        def guides(self, index: int, total: int) -> bool:
            return False

    torch.manual_seed(1)
    network, hint = PixArtControlNet(CONFIG, 1).eval(), torch.randn(2, 4, 4, 4)
    request = Request(("a", "b"), height=32, width=32, sampler="dpm", steps=3)
    model, caption, control = transformer(), features(2, 5), AppliedControl(network, ControlImage(EDGES), hint)
    got = sample(model, request, caption, features(1, 3, seed=1), control=control, policies=[Unguided()])
    want = sample(model, replace(request, guidance=1.0), caption, caption, control=control)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(got, sample(model, replace(request, guidance=1.0), caption, caption), atol=1e-3)


@pytest.mark.parametrize("start, end, timestep, in_force", [
    (0.0, 0.0, 999, True), (0.0, 0.0, 998, False),      # a share of exactly `end` is still inside
    (1.0, 1.0, 0, True), (1.0, 1.0, 1, False), (0.0, 1.0, 0, True), (0.0, 1.0, 999, True),
    (0.2, 0.6, 900, False), (0.2, 0.6, 700, True), (0.2, 0.6, 300, False),
])
def test_control_is_in_force_from_start_to_end_both_included(start, end, timestep, in_force):
    assert ControlImage(EDGES, 1.0, start, end).in_force(timestep) is in_force
    assert ControlImage(EDGES, 0.0, start, end).in_force(timestep) is False


@pytest.mark.parametrize("changes, words", [
    ({"height": 1_000_000, "width": 1_000_000}, "1000000x1000000.*16 pixels to 8192"),
    ({"height": 15}, "1024x15;"), ({"width": 8193}, "8193x1024;"), ({"seed": 2 ** 64}, "fit into 64 bits"),
    ({"guidance": math.nan}, "guidance is nan"), ({"guidance": math.inf}, "guidance is inf"),
    ({"sampler": "dpm", "steps": 1000}, "1000 steps"), ({"rule": "karras"}, "karras"),
])
def test_impossible_requests_are_refused_before_anything_is_loaded(changes, words):
    assert Request(("a",), height=16, width=8192).latent_shape == (2, 1024)
    with pytest.raises(ValueError, match=words):
        Request(("a",), **changes)


def test_the_seeds_of_all_images_of_a_request_must_be_seeds():
    with pytest.raises(ValueError, match="fit into 64 bits, and so must those that follow"):
        Request(("a", "b"), seed=2 ** 64 - 1)


def test_noise_to_begin_with_takes_the_place_of_the_first_draw_alone():
    """What is added later is that of the seeds in any case."""
    model, caption = transformer(), features(2, 5)
    request, noise = Request(("a", "b"), height=32, width=32, steps=3, seed=7), ImageNoise([7, 8], (4, 4, 4))
    first, second = noise(), noise()
    want = sample(model, request, caption, caption)
    assert torch.equal(sample(model, request, caption, caption, start=first), want)
    assert not torch.allclose(sample(model, request, caption, caption, start=second), want)


@pytest.mark.parametrize("strength", [math.nan, math.inf])
def test_a_guide_needs_a_finite_strength(strength):
    with pytest.raises(ValueError, match="strength"):
        ControlImage(EDGES, strength)
