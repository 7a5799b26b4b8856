"""What is rendered from numbers on any device is what PIL makes of the scene."""
import random
from dataclasses import replace

import pytest
import torch

from pixart.mini.images import BUCKETS, _layout, render_scene
from pixart.mini.render import CODE, THINGS, Arrangement, arrange, encode_scene, paint
from pixart.mini.scenes import Scene, Thing, sample_scene
from pixart.train.draws import generator_for


def codes_of(*scenes: Scene) -> torch.Tensor:
    return torch.tensor([encode_scene(scene) for scene in scenes], dtype=torch.int8)


def placed(scene: Scene, size: tuple[int, int], seed: int) -> Arrangement:
    """The scene with its things where PIL puts them."""
    layout = arrange(codes_of(scene), *size, torch.Generator().manual_seed(0))
    rows = torch.tensor(_layout(scene, *size, random.Random(seed)))
    changed = {name: getattr(layout, name).clone() for name in ("y", "x", "radius")}
    for column, name in enumerate(("y", "x", "radius")):
        changed[name][0, :len(rows)] = rows[:, column]
    return replace(layout, **changed)


@pytest.mark.parametrize("index", range(40))
def test_images_are_those_of_pil(index: int) -> None:
    scene, size = sample_scene(index, 5, crowded=index % 4 == 3), BUCKETS[index % len(BUCKETS)]
    wanted = torch.from_numpy(render_scene(scene, *size, random.Random(index))).permute(2, 0, 1)
    found = paint(placed(scene, size, index), *size)[0] * 255
    assert (found - wanted).abs().mean() < 0.8, "grey levels of 255: edges differ by a fraction of a pixel"
    assert ((found - wanted).abs().amax(0) > 64).float().mean() < 0.004


@pytest.mark.parametrize("crowded", [False, True])
def test_things_lie_within_what_pil_allows(crowded: bool) -> None:
    """Over many draws the ranges of places and radii are the same."""
    for index in range(8):
        scene, size = sample_scene(index, 6, crowded=crowded), BUCKETS[index % len(BUCKETS)]
        layout = arrange(codes_of(*[scene] * 400), *size, torch.Generator().manual_seed(index))
        rows = torch.tensor([_layout(scene, *size, random.Random(seed)) for seed in range(400)])
        for column, name in enumerate(("y", "x", "radius")):
            found = getattr(layout, name)[:, :len(scene.things)]
            for quantile in (0.02, 0.5, 0.98):
                torch.testing.assert_close(found.quantile(quantile, 0), rows[..., column].quantile(quantile, 0),
                                           rtol=0, atol=0.8)


def test_a_batch_is_its_images_one_by_one() -> None:
    scenes = [sample_scene(index, 1, crowded=index % 2 == 1) for index in range(6)]
    layout = arrange(codes_of(*scenes), 128, 128, torch.Generator().manual_seed(3))
    whole = paint(layout, 128, 128)
    for row in range(6):
        alone = Arrangement(*(value[row:row + 1] for value in vars(layout).values()))
        assert torch.equal(paint(alone, 128, 128)[0], whole[row])


def test_a_split_step_draws_its_own_rows() -> None:
    codes = codes_of(*[sample_scene(index, 1) for index in range(6)])
    whole = arrange(codes, 128, 128, generator_for(0, 1, total=6))
    part = arrange(codes[2:5], 128, 128, generator_for(0, 1, slice(2, 5), 6))
    assert torch.equal(part.y, whole.y[2:5]) and torch.equal(part.radius, whole.radius[2:5])


def test_a_scene_is_so_many_numbers() -> None:
    scene = Scene("grey", (Thing("ring", "pink", "large", "dotted"),), position="top")
    assert encode_scene(scene) == [2, 1, 3, 1, 5, 7, 2, 0] + [-1, 0, 0, 0] * (THINGS - 1)
    assert all(len(encode_scene(sample_scene(index, 0, crowded=index % 2 == 1))) == CODE for index in range(20))


def test_painting_fewer_things_than_there_can_be_changes_nothing() -> None:
    layout = arrange(codes_of(*[sample_scene(index, 2) for index in range(4)]), 96, 160,
                     torch.Generator().manual_seed(0))
    assert torch.equal(paint(layout, 96, 160, things=2), paint(layout, 96, 160))
