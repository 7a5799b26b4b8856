"""The counted work of a PT-DiT is what torch counts while it runs."""
from dataclasses import replace

import pytest
import torch
from pt_dit.tiny_pt_dit import TINY
from torch.utils.flop_counter import FlopCounterMode

from pixart.accelerate.cost import Costs
from pixart.model.attention import matmul_attention
from pixart.model.transformer import PixArtTransformer
from pixart.pt_dit.config import PTDiTConfig
from pixart.pt_dit.cost import PTDiTCosts
from pixart.pt_dit.transformer import PTDiT


@pytest.mark.parametrize("changes", [{}, {"shifted": False}, {"proxy": 2}, {"learned_variance": False}])
@pytest.mark.parametrize("height, width", [(64, 128), (72, 40)])
def test_macs_are_those_of_the_real_network(changes, height, width):
    config = replace(TINY, **changes)
    network = PTDiT(config, attend=matmul_attention)
    with FlopCounterMode(display=False) as counter:
        network(torch.randn(1, 4, height // 8, width // 8), torch.tensor([500.0]), torch.randn(1, 5, 12))
    assert 2 * PTDiTCosts(config, height, width, 5).row() == counter.get_total_flops()


def test_the_same_counter_counts_a_pixart_alike():
    """So that the two can stand in one table."""
    config = replace(TINY, window=4)
    network = PixArtTransformer(config, attend=matmul_attention)
    with FlopCounterMode(display=False) as counter:
        network(torch.randn(1, 4, 8, 16), torch.tensor([500.0]), torch.randn(1, 5, 12))
    assert 2 * Costs(config, 32, 5).row() == counter.get_total_flops()


def test_without_attention_products_less_is_counted():
    counted = [PTDiTCosts(PTDiTConfig(), 1024, 1024, 120, attention=products).row() for products in (True, False)]
    assert counted[0] > counted[1]
