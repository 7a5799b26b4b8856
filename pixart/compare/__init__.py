"""Comparisons of settings: the list of images to make, and the labelled sheet."""
from .axes import AXES, MOST_CELLS, Axis, Cell, cell_grid, read_axis
from .sheet import labelled_sheet

__all__ = ["AXES", "MOST_CELLS", "Axis", "Cell", "cell_grid", "labelled_sheet", "read_axis"]
