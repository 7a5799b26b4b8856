"""Values of a comparison as people write them, and the grid they make."""
import pytest

from pixart.compare import Cell, cell_grid, read_axis

CELL = Cell("a cat", "", 5, "auto", 0, 0.0, 1.0)


@pytest.mark.parametrize("name, text, values", (
    ("steps", "1, 2,4", (1, 2, 4)), ("steps", "1\n2 4,", (1, 2, 4)), ("seed", "3..5, 9", (3, 4, 5, 9)),
    ("seed", "18446744073709551615", (2 ** 64 - 1,)), ("cfg", "1, 4.5", (1.0, 4.5)), ("denoise", "0 1", (0.0, 1.0)),
    ("method", "auto, tdm", ("auto", "tdm")), ("prompt", "a cat, a dog\n\n  a bird \n", ("a cat, a dog", "a bird"))))
def test_values_as_people_write_them(name, text, values):
    assert read_axis(name, text).values == values


@pytest.mark.parametrize("name, text, finding", (
    ("steps", "four", "steps cannot be 'four'; write whole numbers from 1 to 200"), ("steps", "0", "cannot be '0'"),
    ("steps", "4..2", "cannot be '4..2'"), ("steps", "1.5", "cannot be '1.5'"), ("steps", "-1", "cannot be '-1'"),
    ("seed", "0..300", "301 values"), ("seed", str(2 ** 64), "cannot be"), ("seed", "9" * 5000, "cannot be"),
    ("seed", "²", "cannot be"), ("cfg", "nan", "cannot be 'nan'"), ("cfg", "inf", "cannot be"),
    ("cfg", "0", "cannot be"), ("method", "best", "use auto, teacher"),
    ("steps", " ,\n", "no values of steps are given"), ("prompt", "\n", "no values"),
    ("size", "1", "unknown axis 'size'")))
def test_other_values_are_refused_with_what_is_expected(name, text, finding):
    with pytest.raises(ValueError, match=finding):
        read_axis(name, text)


def test_rows_and_columns_of_a_grid():
    cells = cell_grid(CELL, read_axis("steps", "1, 2, 3"), read_axis("prompt", "a dog\na bird"))
    assert [[(cell.prompt, cell.steps) for cell in row] for row in cells] == [
        [("a dog", 1), ("a dog", 2), ("a dog", 3)], [("a bird", 1), ("a bird", 2), ("a bird", 3)]]
    assert {cell.seed for row in cells for cell in row} == {5}


def test_no_rows_are_one_row():
    cells = cell_grid(CELL, read_axis("cfg", "1, 2"), read_axis("none", "x"))
    assert [[cell.cfg for cell in row] for row in cells] == [[1, 2]]
    assert cell_grid(CELL, read_axis("none", ""), read_axis("none", "")) == [[CELL]]


def test_one_setting_twice_and_too_many_images_are_refused():
    with pytest.raises(ValueError, match="columns and rows are both steps"):
        cell_grid(CELL, read_axis("steps", "1"), read_axis("steps", "2"))
    with pytest.raises(ValueError, match=r"272 images are asked for \(16 x 17\), at most 256"):
        cell_grid(CELL, read_axis("steps", "1..16"), read_axis("seed", "1..17"))
    assert sum(map(len, cell_grid(CELL, read_axis("steps", "1..16"), read_axis("seed", "1..16")))) == 256


def test_labels_say_setting_and_value():
    assert read_axis("cfg", "1, 4.5").labels == ["cfg 1", "cfg 4.5"]
    assert read_axis("prompt", "a cat").labels == ["a cat"] and read_axis("none", "").labels == [""]
    assert read_axis("seed", "18446744073709551615").labels == ["seed 18446744073709551615"]
