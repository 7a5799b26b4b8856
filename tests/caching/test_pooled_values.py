"""Pooled values in the first blocks of a plain model: what uniform attention gives, row by row, beside caches."""
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pixart.accelerate.pooled_values import PooledValues
from pixart.accelerate.tally import TallyBranches
from pixart.config import KVCompression, PixArtConfig
from pixart.model.flexdit_config import Segments
from pixart.model.policy import Step
from pixart.model.to_flexdit import to_flexdit
from pixart.model.transformer import PixArtTransformer

CONFIG = PixArtConfig(depth=4, hidden=48, heads=4, caption_width=16, caption_tokens=8, base_size=4)


def model(seed: int = 0, **changes: object) -> PixArtTransformer:
    network = PixArtTransformer(replace(CONFIG, **changes)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for tensor in network.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) / max(1, tensor[0].numel()) ** 0.5)
    return network


def given(rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(rows, 4, 8, 12, generator=generator), torch.tensor([900.0, 50.0])[:rows],
            torch.randn(rows, 5, 16, generator=generator))


@pytest.mark.parametrize("qk_norm", [False, True])
def test_it_is_attention_with_queries_of_zero(qk_norm):
    network, silent = model(qk_norm=qk_norm), model(qk_norm=qk_norm)
    for block in silent.blocks[:2]:
        last = block.attn.q_norm if qk_norm else None
        for parameter in (last.weight, last.bias) if last else (block.attn.qkv.weight[:48], block.attn.qkv.bias[:48]):
            parameter.zero_()
    got = network(*given(), policies=[PooledValues(CONFIG)])
    torch.testing.assert_close(got, silent(*given()), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(got, network(*given()))


def test_it_is_the_pooling_blocks_of_a_converted_model():
    network = model()
    flex = to_flexdit(network, Segments(2, 0, 0, 0, 2))
    got = network(*given(), policies=[PooledValues(CONFIG)])
    torch.testing.assert_close(got, flex(*given()), rtol=1e-5, atol=1e-5)


def test_its_weights_are_those_of_the_network_that_runs():
    """One policy serves several networks: copies on other devices, or one that hooks put in place of another."""
    shared = PooledValues(CONFIG)
    for network in (model(), model(seed=3)):
        flex = to_flexdit(network, Segments(2, 0, 0, 0, 2))
        torch.testing.assert_close(network(*given(), policies=[shared]), flex(*given()), rtol=1e-5, atol=1e-5)


def test_no_blocks_change_nothing_to_the_bit():
    network = model()
    assert torch.equal(network(*given(), policies=[PooledValues(CONFIG, 0)]), network(*given()))


def test_rows_do_not_see_each_other():
    network = model()
    both = network(*given(), policies=[PooledValues(CONFIG)])
    alone = torch.cat([network(*(each[i:i + 1] for each in given()), policies=[PooledValues(CONFIG)])
                       for i in range(2)])
    torch.testing.assert_close(both, alone, rtol=1e-5, atol=1e-5)


def test_it_is_less_work_in_the_count():
    network, tally = model(), TallyBranches()
    network(*given(), policies=[PooledValues(CONFIG, 3), tally], step=Step(0, 1, 900.0, (0, 1), "run"))
    assert tally.branches(4) == 2 * (3 * 4 - 3)


def test_what_cannot_pool_is_refused():
    with pytest.raises(ValueError, match="5 blocks are to pool; this model has 4"):
        PooledValues(CONFIG, 5)
    compressing = replace(CONFIG, kv_compression=KVCompression("ave", 2, (3, 1)))
    with pytest.raises(ValueError, match="block 1 compresses keys and values"):
        PooledValues(compressing)
    PooledValues(compressing, 1)
