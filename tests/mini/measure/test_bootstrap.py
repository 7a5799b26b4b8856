"""Intervals hold what they promise, and pairing narrows them."""
import math

import pytest
import torch

from pixart.mini.measure.bootstrap import estimate, mcnemar, paired_difference, resamples


def draws(seed: int, count: int) -> torch.Tensor:
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_resamples_are_seeded_and_draw_every_sentence_once_on_average():
    drawn = resamples(50, 3000)
    assert torch.equal(drawn, resamples(50, 3000)) and not torch.equal(drawn, resamples(50, 3000, seed=1))
    assert (drawn.sum(1) == 50).all() and (drawn.mean(0) - 1).abs().max() < 0.1
    assert drawn.var() == pytest.approx(0.98, abs=0.05)           # of a binomial with 50 trials of 1 in 50


def test_interval_of_a_share_is_that_of_the_normal_approximation():
    right = (torch.arange(400) < 300).double()
    found = estimate(right, torch.ones(400).double(), resamples(400))
    assert found.value == 0.75
    assert found.half == pytest.approx(1.96 * math.sqrt(0.75 * 0.25 / 400), rel=0.08)


def test_the_interval_covers_the_truth_nineteen_times_in_twenty():
    drawn, hits = resamples(200, 1000), 0
    for seed in range(200):
        right = (draws(seed, 200) < 0.8).double()
        found = estimate(right, torch.ones(200).double(), drawn)
        hits += found.low <= 0.8 <= found.high
    assert 178 <= hits <= 199


def test_a_paired_difference_is_narrower_where_methods_fail_alike():
    drawn, hard = resamples(500), draws(0, 500)
    one = torch.ones(500).double()
    a, b = (hard > 0.30).double(), (hard > 0.33).double()                # b fails wherever a fails
    stranger = (draws(1, 500) > 0.33).double()
    paired, apart = paired_difference((a, one), (b, one), drawn), paired_difference((a, one), (stranger, one), drawn)
    assert paired.value == pytest.approx((a.mean() - b.mean()).item()) and paired.clear
    assert paired.half < apart.half / 2
    same = paired_difference((a, one), (a, one), drawn)
    assert (same.value, same.low, same.high, same.clear) == (0, 0, 0, False)


def test_resamplings_that_ask_for_nothing_are_left_out():
    right, asked = torch.zeros(30).double(), torch.zeros(30).double()
    right[3] = asked[3] = 1
    found = estimate(right, asked, resamples(30))
    assert (found.value, found.low, found.high) == (1, 1, 1)


@pytest.mark.parametrize("only_a, only_b, p", [(10, 2, 0.03857421875), (2, 10, 0.03857421875), (0, 0, 1.0), (5, 5, 1.0),
                                               (0, 6, 0.03125)])
def test_mcnemar_is_the_exact_binomial_test(only_a, only_b, p):
    a = torch.tensor([True] * only_a + [False] * only_b + [True, False] * 20)
    b = torch.tensor([False] * only_a + [True] * only_b + [True, False] * 20)
    assert mcnemar(a, b) == pytest.approx(p)
