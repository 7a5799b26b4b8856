"""The image with its curve: sizes, values that are no numbers, and that the curve goes where the rewards go."""
import math

import numpy as np
import torch

from pixart.reward.strip import INK, curve, with_curve


def ink(strip) -> np.ndarray:
    """Heights of the line over its columns, from the bottom; NaN where there is none."""
    marks = (np.asarray(strip).astype(int) == np.array(INK)).all(-1)
    return np.where(marks.any(0), marks.shape[0] - marks.argmax(0), np.nan)


def test_the_curve_rises_with_the_rewards():
    heights = ink(curve([-3.0, -2.0, -1.0, 0.0], 4, 200, 60))
    assert heights[10] < heights[100] < heights[190] and np.isnan(ink(curve([-3.0, -2.0], 4, 200, 60))[150])


def test_what_is_no_number_is_left_out():
    assert np.nanmax(ink(curve([math.nan, 1.0, math.inf, 2.0], 4, 200, 60))) > 50
    assert np.isnan(ink(curve([math.nan], 4, 200, 60))).all() and np.isnan(ink(curve([], 4, 200, 60))).all()


def test_the_sheet_is_no_wider_than_a_preview():
    sheet = with_curve(torch.rand(3, 1024, 768), [1.0, 1.0], 2)
    assert sheet.size == (384, 512 + 128)
    assert with_curve(torch.rand(3, 64, 64), [1.0], 1).size == (64, 88)
