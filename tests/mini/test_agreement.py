"""The measure of edge agreement, on maps whose agreement is known, and sampling along maps."""
import pytest
import torch

from pixart.mini import SHIPPED
from pixart.mini.agreement import ControlBench, Steered, agreement, bench_edges, edge_f1
from pixart.mini.measure.bench import Bench
from pixart.mini.measure.methods import USUAL_METHODS
from pixart.mini.measure.prompts import Prompts


def line(row: int, size: int = 16) -> torch.Tensor:
    map_ = torch.zeros(1, 1, size, size)
    map_[..., row, :] = 1
    return map_


@pytest.mark.parametrize("shift, expected", [(0, 1.0), (1, 1.0), (2, 0.0), (-1, 1.0), (5, 0.0)])
def test_a_line_agrees_within_one_pixel(shift, expected):
    assert edge_f1(line(8), line(8 + shift)).tolist() == [expected]


def test_half_found_and_half_invented():
    two = line(2) + line(12)
    assert edge_f1(line(2), two).item() == pytest.approx(2 * 1.0 * 0.5 / 1.5)       # half is missing
    assert edge_f1(two, line(2)).item() == pytest.approx(2 * 0.5 * 1.0 / 1.5)       # half is invented


def test_empty_maps_and_a_batch():
    nothing = torch.zeros(1, 1, 16, 16)
    found, wanted = torch.cat([nothing, nothing, line(3), line(3)]), torch.cat([nothing, line(3), nothing, line(4)])
    assert edge_f1(found, wanted).tolist() == [1.0, 0.0, 0.0, 1.0]


def test_real_images_agree_with_their_own_maps_and_not_with_those_of_others():
    real = Prompts.held_out(10, 7).real()
    maps = bench_edges(real, 4)
    assert all(set(part.unique().tolist()) == {0, 255} for part in maps.parts)
    assert agreement(real, maps, 4).tolist() == [1.0] * 10
    other = bench_edges(Prompts.held_out(10, 8).real(), 4)
    assert agreement(real, other, 4).mean() < 0.5


def test_control_moves_edges_and_strength_zero_is_as_without():
    from pixart.checkpoint import load_control
    bench, network = Bench.open(SHIPPED, 7, 7, batch=2), load_control(SHIPPED.control, torch.float32)
    maps = bench_edges(bench.prompts.real(), 7)
    plain = USUAL_METHODS[1].generate(bench)
    zero, full = (Steered(USUAL_METHODS[1], network, maps, strength).generate(bench) for strength in (0.0, 1.0))
    assert all(torch.equal(zero[i], plain[i]) for i in range(7))
    assert agreement(full, maps, 7).mean() > agreement(plain, maps, 7).mean() + 0.1


def test_the_ceiling_compares_every_image_with_its_own_map():
    """With several images of a size they used to be mixed up."""
    ceiling = ControlBench(15, 7, SHIPPED).ceiling()
    assert ceiling.f1 > 0.9 and ceiling.row.accuracy["all"] > 0.98
