"""Sheets show every image in its place, and the part with the edges."""
import torch

from pixart.mini.measure.batches import BenchImages
from pixart.mini.measure.prompts import Prompts
from pixart.mini.measure.sheets import CROP, ZOOM, edge_sheet, magnified, method_sheet


def test_each_image_is_in_its_place():
    prompts = Prompts.held_out(2, 7)
    images = {"one": BenchImages.of([torch.full((3, 128, 128), 0.0), torch.full((3, 112, 144), 0.5)]),
              "two": [torch.full((3, 128, 128), 1.0), torch.zeros(3, 112, 144)]}
    sheet = method_sheet(images, prompts, range(2))
    assert sheet.width == 320
    above = (sheet.height - 24) // 2 - 160
    middles = [[sheet.getpixel((x, 24 + row * (above + 160) + above + 80)) for x in (80, 240)] for row in range(2)]
    assert middles == [[(0, 0, 0), (255,) * 3], [(128,) * 3, (0, 0, 0)]]


def test_the_part_with_the_edge_is_magnified():
    image = torch.zeros(3, 112, 144)
    image[:, 20:, 100:] = 1
    part = magnified(image)
    assert part.shape == (3, CROP * ZOOM, CROP * ZOOM)
    assert set(part.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(part[:, ::ZOOM, ::ZOOM].repeat_interleave(ZOOM, 1).repeat_interleave(ZOOM, 2), part)


def test_an_edge_sheet_of_images():
    prompts = Prompts.held_out(3, 7)
    sheet = edge_sheet({"real": prompts.real()}, prompts, [0, 2])
    assert sheet.width == CROP * ZOOM + 8
