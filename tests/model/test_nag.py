"""Normalized attention guidance: the published rule inside cross-attention, off exactly where it is to be off."""
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pixart.accelerate.branches import ReuseBranches
from pixart.accelerate.schedule import BranchSchedule
from pixart.config import PixArtConfig
from pixart.model.flexdit_config import FlexDiTConfig, Segments
from pixart.model.nag import NAG, away_from
from pixart.model.policy import Lane, Step
from pixart.model.transformer import PixArtTransformer

CONFIG = PixArtConfig(depth=2, hidden=48, heads=4, caption_width=16, caption_tokens=8, base_size=4)
NEGATIVE = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(5))


def model(seed: int = 0) -> PixArtTransformer:
    network = PixArtTransformer(CONFIG).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for tensor in network.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) / max(1, tensor[0].numel()) ** 0.5)
    return network


def given(rows: int = 2) -> tuple[Tensor, ...]:
    """Latents, timesteps, text and its mask."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])[:rows]
    return (torch.randn(rows, 4, 8, 12, generator=generator), torch.tensor([900.0, 50.0])[:rows],
            torch.randn(rows, 5, 16, generator=generator), mask)


def step(index: int = 0, negative: tuple[bool, ...] = (False, False)) -> Step:
    return Step(index, 4, 900.0, tuple(Lane(row, kind, kind) for row, kind in enumerate(negative)), "run")


def published(z_positive: Tensor, z_negative: Tensor, scale: float, tau: float, alpha: float) -> Tensor:
    """As the paper writes it, phi = scale - 1, in float64, token by token."""
    extrapolated = z_positive + (scale - 1) * (z_positive - z_negative)
    ratio = extrapolated.abs().sum(-1, keepdim=True) / z_positive.abs().sum(-1, keepdim=True)
    return alpha * torch.where(ratio > tau, tau / ratio, 1.0) * extrapolated + (1 - alpha) * z_positive


@pytest.mark.parametrize(("scale", "tau", "alpha"), [(5, 2.5, 0.5), (11, 1.0, 1.0), (1.5, 10, 0.25)])
def test_it_is_the_published_rule(scale, tau, alpha):
    positive, negative = torch.randn(2, 2, 6, 12, dtype=torch.float64)
    got = away_from(positive, negative, scale, tau, alpha)
    torch.testing.assert_close(got, published(positive, negative, scale, tau, alpha), rtol=1e-6, atol=1e-6)
    lengths = [each.abs().sum(-1) for each in (away_from(positive, negative, scale, tau, 1.0), positive)]
    assert (lengths[0] <= tau * lengths[1] * (1 + 1e-6)).all()


def test_a_silent_answer_gives_no_nan():
    assert torch.equal(away_from(torch.zeros(1, 2, 4), torch.zeros(1, 2, 4), 5, 2.5, 0.5), torch.zeros(1, 2, 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_16_bits_lengths_are_summed_exactly(dtype):
    """1,152 numbers of 100 add up to more than float16 holds; then nothing would be held to its length."""
    positive, negative = (100 + torch.randn(1, 2, 1152, generator=torch.Generator().manual_seed(i)) for i in range(2))
    positive, negative = positive.to(dtype), negative.to(dtype)
    got = away_from(positive, -negative, 11, 2.5, 1.0)
    want = away_from(positive.float(), -negative.float(), 11, 2.5, 1.0)
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), want, rtol=0.02, atol=0)


def statement(network: PixArtTransformer, p) -> Tensor:
    """Cross-attention of block 0 with NAG, by torch's own attention and nothing of the package."""
    cross, text = network.blocks[0].cross_attn, network.y_embedder(NEGATIVE).expand(2, -1, -1)

    def heads(t: Tensor) -> Tensor:
        return t.unflatten(2, (4, 12)).transpose(1, 2)

    def said(tokens: Tensor, mask: Tensor | None) -> Tensor:
        k, v = cross.kv_linear(tokens).chunk(2, -1)
        found = F.scaled_dot_product_attention(heads(cross.q_linear(p.x)), heads(k), heads(v), attn_mask=mask)
        return found.transpose(1, 2).flatten(2)
    keep = given()[3][:, None, None]
    return cross.proj(published(said(p.text, keep), said(text, None), 5.0, 2.5, 0.5))


def test_it_acts_before_the_last_layer_of_cross_attention():
    network, seen = model(), []

    class Watch(NAG):
        def branch(self, index, name, p, go):
            said = super().branch(index, name, p, go)
            if (index, name) == (0, "cross_attn"):
                seen.append((p, said))
            return said
    network(*given(), policies=[Watch(CONFIG, NEGATIVE)])
    (p, said), = seen
    torch.testing.assert_close(said, statement(network, p), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("off", [{"scale": 1.0}, {"alpha": 0.0}, {"start": 0.5, "end": 0.5}, {"start": 0.5}])
def test_it_is_off_to_the_bit(off):
    network = model()
    assert torch.equal(network(*given(), policies=[NAG(CONFIG, NEGATIVE, **off)], step=step()), network(*given()))


def test_it_is_in_force_from_start_on_and_before_end():
    network = model()
    policy, plain = NAG(CONFIG, NEGATIVE, start=0.25, end=0.75), network(*given())
    changed = [not torch.equal(network(*given(), policies=[policy], step=step(index)), plain) for index in range(4)]
    assert changed == [False, True, True, False]


def test_a_negative_prompt_that_says_the_same_changes_nothing_but_rounding():
    network = model()
    x, t, text, _ = given(1)
    got = network(x, t, text, policies=[NAG(CONFIG, text)])
    torch.testing.assert_close(got, network(x, t, text), rtol=1e-4, atol=1e-4)


def test_rows_do_not_see_each_other():
    network = model()
    both = network(*given(), policies=[NAG(CONFIG, NEGATIVE)])
    alone = torch.cat([network(*(each[i:i + 1] for each in given()), policies=[NAG(CONFIG, NEGATIVE)])
                       for i in range(2)])
    torch.testing.assert_close(both, alone, rtol=1e-5, atol=1e-5)


def test_networks_of_several_devices_share_it():
    """As ComfyUI splits guidance over GPUs: a thread and a copy of the network for each, other hooks on each."""
    networks, shared = [model(seed) for seed in (0, 1)], NAG(CONFIG, NEGATIVE)
    with ThreadPoolExecutor(2) as threads:
        got = list(threads.map(lambda network: network(*given(), policies=[shared]), networks))
    for network, drawn in zip(networks, got):
        assert torch.equal(drawn, network(*given(), policies=[NAG(CONFIG, NEGATIVE)]))
    assert not torch.allclose(got[0], got[1], atol=1e-3)


def test_rows_of_the_negative_prompt_of_guidance_are_left_alone():
    network = model()
    plain, steered = network(*given()), network(*given(), policies=[NAG(CONFIG, NEGATIVE)])
    mixed = network(*given(), policies=[NAG(CONFIG, NEGATIVE)], step=step(negative=(True, False)))
    torch.testing.assert_close(mixed, torch.cat([plain[:1], steered[1:]]), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain[1], steered[1], atol=1e-3)


def test_a_cache_in_front_of_it_keeps_what_it_said():
    network = model()
    bits = torch.ones(4, 2, 3, dtype=torch.bool)
    bits[1:, :, 1] = False          # cross-attention once
    policies = [ReuseBranches(BranchSchedule.of("once", bits)), NAG(CONFIG, NEGATIVE)]
    first, second = (network(*given(), policies=policies, step=step(index)) for index in (0, 1))
    assert torch.equal(first, second)


@pytest.mark.parametrize(("wrong", "told"), [
    ({"scale": 0.5}, "scale 0.5"), ({"tau": 0.5}, "tau 0.5"), ({"alpha": 1.5}, "alpha 1.5"),
    ({"scale": float("nan")}, "scale nan"), ({"start": 0.6, "end": 0.5}, "from 0.6 to 0.5"),
    ({"negative": torch.zeros(2, 3, 16)}, "one prompt"), ({"negative": torch.zeros(1, 3, 20)}, "text encoder")])
def test_what_cannot_be_meant_is_refused(wrong, told):
    with pytest.raises(ValueError, match=told):
        NAG(CONFIG, **{"negative": NEGATIVE, **wrong})


def test_a_flexdit_is_refused():
    config = FlexDiTConfig.of(replace(CONFIG, depth=4), Segments(2, 0, 0, 0, 2))
    with pytest.raises(ValueError, match="no cache, feedback or block patch"):
        NAG(config, NEGATIVE)
