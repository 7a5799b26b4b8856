"""Passes and multiplications, counted against the closed formula of the transformer."""
from dataclasses import replace

import pytest
import torch

from pixart.mini import SHIPPED
from pixart.mini.measure.bench import Bench
from pixart.mini.measure.cost import count, counted_flops, counted_passes, timed
from pixart.mini.measure.methods import USUAL_METHODS, Sampled
from pixart.model.attention import matmul_attention, sdpa


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench.open(SHIPPED, 7, 7)


def block_macs(tokens: int, text: int, width: int = 192) -> int:
    """Multiply-accumulates of one block: self-attention, cross-attention, feed-forward of four times the width."""
    own = 4 * tokens * width ** 2 + 2 * tokens ** 2 * width
    cross = (2 * tokens + 2 * text) * width ** 2 + 2 * tokens * text * width
    return own + cross + 8 * tokens * width ** 2


@pytest.mark.parametrize("attend", [sdpa, matmul_attention])
def test_multiplications_of_a_block(attend):
    from pixart.checkpoint import load
    model = load(SHIPPED.teacher, dtype=torch.float32, attend=attend)
    x, text, modulation = torch.randn(2, 64, 192), torch.randn(2, 20, 192), torch.randn(2, 6, 192)
    with torch.inference_mode(), counted_flops() as flops:
        model.blocks[0](x, text, modulation, (8, 8), torch.ones(2, 20, dtype=torch.bool))
    assert flops.get_total_flops() == 2 * 2 * block_macs(64, 20)


def test_passes_of_the_samplers(bench):
    guided, plain = Sampled("a", "teacher", "dpm", 2, 2.5), Sampled("b", "teacher", "dpm", 2)
    (two, more), (one, less), (lcm, _) = (count(method, bench) for method in (guided, plain, USUAL_METHODS[2]))
    assert (two, one, lcm) == (4, 2, 2)
    network = (more - less) / 2                        # the decoder is the same in both
    assert network == pytest.approx(8 * block_macs(64, 16), rel=0.1)        # the rest is embedders and final layer


def test_the_count_does_not_depend_on_the_batch_and_takes_as_many_images_as_asked_for(bench):
    assert count(USUAL_METHODS[3], bench, 6) == count(USUAL_METHODS[3], replace(bench, batch=1), 6)
    with counted_passes() as passes:
        count(USUAL_METHODS[3], bench, 2)
    assert passes.rows == 1 + 2                         # one is generated before, uncounted
    with counted_passes() as passes:
        pass
    assert passes.rows == 0


def test_time_is_of_one_image(bench):
    images, milliseconds = timed(USUAL_METHODS[3], bench)
    assert len(images) == 7 and 0 < milliseconds < 60_000
