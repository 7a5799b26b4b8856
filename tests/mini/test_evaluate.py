"""Measuring: the distance is right on known cases, and table and contact sheet show what was measured."""
import torch

from pixart.mini import evaluate
from pixart.mini.pictures import BUCKETS


def test_distance_of_equal_sets_is_zero():
    features = torch.randn(500, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert abs(evaluate.frechet_distance(features, features)) < 1e-9


def test_distance_of_known_gaussians():
    """Shift by d and scale by s in n dimensions: d^2 + n (s - 1)^2."""
    base = torch.randn(200_000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    other = torch.randn(200_000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3 + 2
    assert abs(evaluate.frechet_distance(base, other) - (3 * 4 + 3 * 4)) < 0.3


def test_prompts_are_fixed_and_held_out():
    from pixart.mini.grammar import split
    prompts, again = (evaluate.Prompts.held_out(30, 7) for _ in range(2))
    assert prompts == again and all(split(scene) == "held-out" for scene in prompts.scenes)
    groups = list(prompts.groups(4))
    assert sorted(i for _, members in groups for i in members) == list(range(30))
    assert all(size == BUCKETS[i % len(BUCKETS)] for size, members in groups for i in members)
    assert max(len(members) for _, members in groups) == 4


def test_table_has_a_row_per_result_and_blanks_for_what_was_not_asked():
    results = [evaluate.Result("real", {"all": 0.995, "pictures": 0.98, "shape": 1.0}, 0.5, 40, 0.0),
               evaluate.Result("LCM", {"all": 0.9, "pictures": 0.7, "shape": 0.8}, 12.25, 40, 0.1)]
    lines = evaluate.table(results).splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert lines[3].startswith("| LCM | 90.0 | 70.0 |") and lines[3].endswith("| 12.25 | 40 |")


def test_contact_sheet_shows_each_picture_in_its_place():
    prompts = evaluate.Prompts.held_out(2, 7)
    pictures = {"one": [torch.full((3, 128, 128), 0.0), torch.full((3, 112, 144), 0.5)],
                "two": [torch.full((3, 128, 128), 1.0), torch.zeros(3, 112, 144)]}
    sheet = evaluate.contact_sheet(pictures, prompts, range(2))
    assert sheet.size == (320, 24 + 2 * 178)
    assert sheet.getpixel((80, 24 + 16 + 80)) == (0, 0, 0) and sheet.getpixel((80, 24 + 178 + 16 + 80)) == (128,) * 3
