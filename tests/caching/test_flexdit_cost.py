"""Counted work of a FlexDiT: what torch's own counter finds in its pass, and the roles one by one."""
import pytest
import torch

from pixart.accelerate.cost import Costs
from pixart.accelerate.flexdit_cost import FlexDiTCosts
from pixart.config import PixArtConfig
from pixart.mini.measure.cost import counted_flops
from pixart.model.flexdit import FlexDiT
from pixart.model.flexdit_config import Density, FlexDiTConfig, Segments

CONFIG = FlexDiTConfig.of(PixArtConfig(depth=8, hidden=48, heads=4, caption_width=16, caption_tokens=8))


@pytest.mark.parametrize("timestep", [100.0, 400.0, 999.0])
def test_it_is_what_torch_counts_in_a_pass(timestep):
    model = FlexDiT(CONFIG).eval().requires_grad_(False)
    with counted_flops() as flops:
        model(torch.randn(1, 4, 16, 24), torch.tensor([timestep]), torch.randn(1, 5, 16))
    assert FlexDiTCosts.at(CONFIG, (8, 12), timestep, 5).row() == flops.get_total_flops() / 2


def test_without_pruning_and_segments_it_is_a_plain_pixart():
    plain = FlexDiTConfig.of(CONFIG, Segments(0, 0, 0, 0, 8))
    assert FlexDiTCosts.at(plain, (8, 12), 500, 5).row() == Costs(CONFIG, 96, 5).row()


def test_less_noise_is_more_work():
    work = [FlexDiTCosts.at(CONFIG, (32, 32), t, 120).row() for t in (999, 700, 400, 100)]
    assert work == sorted(work) and work[0] < work[-1]
    fixed = FlexDiTConfig.of(CONFIG, density=Density(0.75, 0.75))
    assert len({FlexDiTCosts.at(fixed, (32, 32), t, 120).row() for t in (999, 500, 1)}) == 1
