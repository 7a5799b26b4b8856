"""The measure of edge agreement, on maps whose agreement is known."""
import pytest
import torch

from pixart.mini.agreement import Pairs, edge_f1, edges


def line(row: int, size: int = 16) -> torch.Tensor:
    map_ = torch.zeros(1, size, size)
    map_[0, row] = 1
    return map_


@pytest.mark.parametrize("shift, expected", [(0, 1.0), (1, 1.0), (2, 0.0), (-1, 1.0), (5, 0.0)])
def test_a_line_agrees_within_one_pixel(shift, expected):
    assert edge_f1(line(8), line(8 + shift)) == expected


def test_half_found_and_half_invented():
    two = line(2) + line(12)
    assert edge_f1(line(2), two) == pytest.approx(2 * 1.0 * 0.5 / 1.5)       # half is missing
    assert edge_f1(two, line(2)) == pytest.approx(2 * 0.5 * 1.0 / 1.5)       # half is invented
    assert edge_f1(two, two) == 1.0


def test_empty_maps():
    nothing = torch.zeros(1, 16, 16)
    assert edge_f1(nothing, nothing) == 1.0
    assert edge_f1(nothing, line(3)) == edge_f1(line(3), nothing) == 0.0


def test_real_pictures_agree_with_their_own_maps_and_not_with_those_of_others():
    pairs = Pairs.held_out(10, 7)
    own = [edge_f1(edges(picture), map_) for picture, map_ in zip(pairs.real, pairs.maps)]
    others = [edge_f1(edges(pairs.real[i]), pairs.maps[i + 5]) for i in range(5)]     # the same size, another scene
    assert own == [1.0] * 10 and max(others) < 0.5
    assert all(set(map_.unique().tolist()) == {0.0, 1.0} for map_ in pairs.maps)
