"""Images of every kind become the right colours, upright and cut as documented; broken ones say why."""
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from pixart.prepare.buckets import Unfit, slot_of, slot_of_latents
from pixart.prepare.families import FAMILIES
from pixart.prepare.images import BrokenImage, image_size, load_image
from pixart.prepare.items import Place

ALPHA, MINI = FAMILIES["alpha"], FAMILIES["mini"]


def save(path: Path, image: Image.Image, **options: object) -> Place:
    image.save(path, **options)
    return Place(path)


def colour_of(place: Place) -> list[int]:
    """Colour of the middle, at the image's own size."""
    pixels = load_image(place, image_size(place))
    return pixels[:, pixels.shape[1] // 2, pixels.shape[2] // 2].tolist()


@pytest.mark.parametrize("name, image, colour", [
    ("grey.png", Image.new("L", (8, 8), 100), [100, 100, 100]),
    ("bits.png", Image.new("1", (8, 8), 1), [255, 255, 255]),
    ("grey16.png", Image.fromarray(np.full((8, 8), 100 * 257, np.uint16)), [100, 100, 100]),
    ("grey16.tif", Image.fromarray(np.full((8, 8), 65535, np.uint16)), [255, 255, 255]),
    ("whole32.tif", Image.fromarray(np.full((8, 8), 100 * 257, np.int32)), [100, 100, 100]),
    ("alpha.png", Image.new("RGBA", (8, 8), (200, 0, 0, 0)), [255, 255, 255]),
    ("half.png", Image.new("RGBA", (8, 8), (200, 0, 0, 51)), [244, 204, 204]),
    ("greyalpha.png", Image.new("LA", (8, 8), (0, 255)), [0, 0, 0]),
    ("palette.png", Image.new("RGB", (8, 8), (10, 200, 30)).quantize(2), [10, 200, 30]),
    ("ink.tif", Image.new("CMYK", (8, 8), (255, 0, 0, 0)), [0, 255, 255]),
    ("colours.bmp", Image.new("RGB", (8, 8), (1, 2, 3)), [1, 2, 3]),
    ("colours.webp", Image.new("RGB", (8, 8), (255, 255, 255)), [255, 255, 255]),
])
def test_every_mode_becomes_plain_colours(tmp_path, name, image, colour):
    assert colour_of(save(tmp_path / name, image)) == colour


def test_a_transparent_palette_entry_is_white(tmp_path):
    image = Image.new("P", (8, 8), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    assert colour_of(save(tmp_path / "p.png", image, transparency=0)) == [255, 255, 255]


def test_a_printed_jpeg_keeps_its_colours(tmp_path):
    found = colour_of(save(tmp_path / "ink.jpg", Image.new("CMYK", (16, 16), (0, 255, 255, 0)), quality=95))
    assert found[0] > 245 and max(found[1:]) < 12


def test_an_image_that_was_turned_by_its_camera_is_upright(tmp_path):
    image = Image.new("RGB", (12, 6), "white")
    image.paste("black", (0, 0, 3, 6))                    # dark on the left as stored
    exif = Image.Exif()
    exif[0x0112] = 6                                        # to be turned clockwise: dark at the top
    place = save(tmp_path / "turned.png", image, exif=exif)
    assert image_size(place) == (12, 6)
    pixels = load_image(place, (12, 6))
    assert pixels.shape == (3, 12, 6) and pixels[0, 0].max() == 0 and pixels[0, -1].min() == 255


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_all_eight_ways_of_holding_a_camera(tmp_path, orientation, name):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype=np.uint8)).resize((48, 32))
    exif = Image.Exif()
    exif[0x0112] = orientation
    place = save(tmp_path / name, image, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(place.path)).convert("RGB")
    assert image_size(place) == (expected.height, expected.width)
    assert torch.equal(load_image(place, image_size(place)), torch.from_numpy(np.array(expected)).permute(2, 0, 1))


def test_measuring_reads_no_pixels(tmp_path):
    place = save(tmp_path / "a.png", Image.effect_noise((256, 256), 80))
    place.path.write_bytes(place.path.read_bytes()[:2000])
    assert image_size(place) == (256, 256)
    with pytest.raises(BrokenImage, match="damaged or cut off"):
        load_image(place, (8, 8))


def test_scaling_covers_and_cuts_the_centre(tmp_path):
    image = Image.new("RGB", (40, 10))
    for column in range(40):
        image.paste((column * 6, 0, 0), (column, 0, column + 1, 10))
    place = save(tmp_path / "wide.png", image)
    assert load_image(place, (10, 20))[0, 0].tolist() == [6 * column for column in range(10, 30)]
    assert load_image(place, (20, 20)).shape == (3, 20, 20)
    shrunk = load_image(place, (5, 20))[0, 0]
    expected = torch.tensor([6 * (2 * column + 0.5) for column in range(20)])
    assert (shrunk[2:-2] - expected[2:-2]).abs().max() <= 1         # the whole width, halved, nothing cut


def test_scaling_is_bicubic_as_in_training(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8))
    place = save(tmp_path / "a.png", image)
    for sharp, method in ((False, Image.Resampling.BICUBIC), (True, Image.Resampling.LANCZOS)):
        expected = np.array(image.resize((16, 16), method))
        assert torch.equal(load_image(place, (16, 16), sharp), torch.from_numpy(expected).permute(2, 0, 1))


def jpeg(height: int = 64, width: int = 64) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "jpeg", quality=95)
    return buffer.getvalue()


@pytest.mark.parametrize("data, reason", [
    (b"", "it is empty"),
    (b"<html>404 Not Found</html>", "it is not an image"),
    (jpeg()[:len(jpeg()) // 2], "damaged or cut off"),
    (b"\x89PNG\r\n\x1a\n" + b"\x00" * 40, "it "),
])
def test_broken_images_say_why(tmp_path, data, reason):
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    with pytest.raises(BrokenImage, match=reason):
        load_image(Place(path), image_size(Place(path)))


def test_an_image_that_is_not_there_says_so(tmp_path):
    with pytest.raises(BrokenImage, match="cannot be read: No such file"):
        image_size(Place(tmp_path / "a.png"))


def test_an_image_of_floating_point_numbers_is_refused(tmp_path):
    place = save(tmp_path / "a.tif", Image.fromarray(np.zeros((8, 8), np.float32)))
    with pytest.raises(BrokenImage, match="floating-point"):
        load_image(place, (8, 8))


# -- buckets -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("size, sides, ratio", [
    ((512, 512), (64, 64), 1.0), ((1080, 1920), (48, 84), 0.57), ((3000, 2000), (76, 52), 1.46),
    ((100, 400), (32, 128), 0.25), ((400, 100), (128, 32), 4.0), ((1, 1), (64, 64), 1.0),
])
def test_the_nearest_trained_shape_is_chosen_and_the_model_told_the_original_size(size, sides, ratio):
    slot = slot_of(size, 512, ALPHA)
    assert (slot.sides, slot.size, slot.aspect) == (sides, size, ratio)
    assert slot.pixels == (sides[0] * 8, sides[1] * 8)


def test_mini_is_told_the_size_of_the_bucket():
    slot = slot_of((300, 180), 128, MINI)
    assert (slot.sides, slot.size, slot.aspect) == ((20, 12), (160, 96), 160 / 96)


def test_images_that_are_too_long_are_refused():
    for size in ((100, 401), (401, 100)):
        with pytest.raises(Unfit, match="more than 4 : 1"):
            slot_of(size, 512, ALPHA)
    assert slot_of((100, 401), 512, FAMILIES["sigma"]).sides == (32, 128)


def test_latents_computed_before_keep_their_sides():
    assert slot_of_latents((64, 64), None, 512, ALPHA).size == (512, 512)
    slot = slot_of_latents((48, 84), (1080, 1920), 512, ALPHA)
    assert (slot.sides, slot.size, slot.aspect) == ((48, 84), (1080, 1920), 0.57)
