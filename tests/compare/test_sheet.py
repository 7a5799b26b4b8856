"""The labelled sheet: every image whole at its place, labels inside their cells."""
import numpy as np
import pytest
import torch

from pixart.compare import labelled_sheet
from pixart.compare.sheet import LABEL_LINES, SHEET_GAP, WIDEST_SHEET, label_font, label_lines


def images(rows: int, columns: int, height: int = 48, width: int = 64) -> list[list[torch.Tensor]]:
    """Every image of a colour of its own, none of them white or black."""
    return [[torch.tensor([(row + 1) / 20, (column + 1) / 20, 0.5]).view(3, 1, 1).expand(3, height, width)
             for column in range(columns)] for row in range(rows)]


def test_every_image_is_at_its_place_unchanged():
    drawn = images(3, 4)
    sheet = np.asarray(labelled_sheet(drawn, ["1", "2", "3", "4"], ["a", "b", "c"], "title"))
    for row in range(3):
        for column in range(4):
            colour = (drawn[row][column][:, 0, 0] * 255).round().byte().tolist()
            ys, xs = np.nonzero((sheet == colour).all(-1))
            assert len(ys) == 48 * 64
            assert ys.max() + 1 == sheet.shape[0] - (2 - row) * (48 + SHEET_GAP) - SHEET_GAP
            assert xs.max() + 1 == sheet.shape[1] - (3 - column) * (64 + SHEET_GAP) - SHEET_GAP


@pytest.mark.parametrize("rows", (["first", "second"], ["", ""]))
def test_labels_leave_the_images_alone(rows):
    """The same sheet whatever the words, but for the ink beside the images."""
    drawn = images(2, 2)
    words = np.asarray(labelled_sheet(drawn, ["wide " * 40, "b" * 300], rows, "t"))
    height, width = 2 * (48 + SHEET_GAP), 2 * (64 + SHEET_GAP)
    plain = np.asarray(labelled_sheet(drawn, ["x", "y"], ["", ""]))
    assert np.array_equal(words[-height:, -width:], plain[-height:, -width:])
    assert (words[:-height] < 128).any()
    assert (words[-height:, :-width] < 128).any() == any(rows)


def test_a_large_sheet_is_made_smaller():
    drawn = [[torch.zeros(3, 1024, 1024).expand(3, 1024, 1024)] * 16] * 2
    sheet = labelled_sheet(drawn, ["x"] * 16, ["a", "b"])
    assert WIDEST_SHEET * 0.9 < sheet.width <= WIDEST_SHEET * 1.02
    high = labelled_sheet(list(zip(*drawn)), ["a", "b"], [""] * 16)
    assert WIDEST_SHEET * 0.9 < high.height <= WIDEST_SHEET * 1.02


def test_lines_keep_to_their_room():
    font = label_font(14)
    for text in ("", "one", "a few words that go on for a while " * 9, "x" * 400, "雪" * 90, "a\nb\tc"):
        lines = label_lines(text, 120, font)
        assert len(lines) <= LABEL_LINES and all(font.getlength(line) <= 120 for line in lines)
        assert "".join(lines).removesuffix("...").replace(" ", "") in "".join(text.split())
    assert label_lines("some words here", 400, font) == ["some words here"]
    assert label_lines("word " * 200, 120, font)[-1].endswith("...")
