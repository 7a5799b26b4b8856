"""Images show what the scene says, wholly inside the frame, the same every time."""
import random

import numpy as np
import pytest

from pixart.mini.images import BACKGROUND_RGB, BUCKETS, COLOUR_RGB, render_scene
from pixart.mini.scenes import (
    BACKGROUNDS,
    CELLS,
    COLOURS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    Thing,
    sample_scene,
)


def rendered(scene: Scene, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return render_scene(scene, *size, random.Random(seed))


def painted(image: np.ndarray, background: str) -> np.ndarray:
    """Where anything but background lies, (H, W) bool."""
    return np.abs(image.astype(int) - BACKGROUND_RGB[background]).max(-1) > 12


def middle(where: np.ndarray) -> tuple[float, float]:
    ys, xs = np.nonzero(where)
    return (ys.min() + ys.max()) / 2 / where.shape[0], (xs.min() + xs.max()) / 2 / where.shape[1]


@pytest.mark.parametrize("size", BUCKETS)
def test_an_image_depends_on_scene_and_seed_alone(size: tuple[int, int]) -> None:
    scene = sample_scene(1, 0)
    first = rendered(scene, size)
    assert first.shape == (*size, 3) and first.dtype == np.uint8
    assert np.array_equal(first, rendered(scene, size))
    assert not np.array_equal(first, rendered(scene, size, seed=1))


@pytest.mark.parametrize("size", BUCKETS)
@pytest.mark.parametrize("position", PLACES)
@pytest.mark.parametrize("extent", SIZES)
def test_things_lie_where_the_words_say_and_inside(size: tuple[int, int], position: str, extent: str) -> None:
    for seed in range(4):
        scene = Scene("white", (Thing("circle", "red", extent, "plain"),), position=position)
        where = painted(rendered(scene, size, seed), "white")
        assert not (where[0].any() or where[-1].any() or where[:, 0].any() or where[:, -1].any())
        y, x = middle(where)
        assert (y < 0.47) == (position == "top") and (y > 0.53) == (position == "bottom")
        assert (x < 0.47) == (position == "left") and (x > 0.53) == (position == "right")


@pytest.mark.parametrize("size", BUCKETS)
@pytest.mark.parametrize("relation", RELATIONS)
def test_the_first_of_two_things_is_left_or_above(size: tuple[int, int], relation: str) -> None:
    things = (Thing("ring", "red", "medium", "plain"), Thing("square", "blue", "medium", "plain"))
    image = rendered(Scene("black", things, relation=relation), size).astype(int)
    first, second = (middle(np.abs(image - COLOUR_RGB[name]).max(-1) < 8) for name in ("red", "blue"))
    axis = 1 if relation == "left of" else 0
    assert second[axis] - first[axis] > 0.3
    assert abs(second[1 - axis] - first[1 - axis]) < 0.12


@pytest.mark.parametrize("size", BUCKETS)
def test_things_of_crowded_scenes_stay_in_their_cells(size: tuple[int, int]) -> None:
    height, width = size
    for index, cell in enumerate(CELLS):
        where = painted(rendered(Scene("white", (Thing("circle", "red", "medium", "plain"),) * 3,
                                       cells=(cell,) * 3), size, seed=index), "white")
        row, column = divmod(index, 3)
        inside = where[row * height // 3:-(-(row + 1) * height // 3), column * width // 3:-(-(column + 1) * width // 3)]
        assert inside.sum() == where.sum() > 100


def test_small_and_large_differ_clearly() -> None:
    areas = [painted(rendered(Scene("grey", (Thing("square", "cyan", size, "plain"),), position="centre"), (128, 128)),
                     "grey").sum() for size in SIZES]
    assert areas[1] > 2 * areas[0]


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("colour", COLOURS)
def test_every_colour_and_its_stripes_stand_out_from_every_background(background: str, colour: str) -> None:
    scene = Scene(background, (Thing("square", colour, "large", "striped"),), position="centre")
    inside = rendered(scene, (128, 128))[44:84, 44:84].astype(int)
    distance = np.abs(inside - BACKGROUND_RGB[background]).max(-1)
    assert distance.min() > 30


def test_shapes_and_textures_all_look_different() -> None:
    scenes = [Scene("black", (Thing(shape, "pink", "small", texture),), position="centre")
              for shape in SHAPES for texture in TEXTURES]
    images = {rendered(scene, (96, 160)).tobytes() for scene in scenes}
    assert len(images) == len(SHAPES) * len(TEXTURES)
