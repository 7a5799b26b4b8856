"""Images brought to a size without stretching, and laid on a ground."""
import pytest
import torch
from torch.nn.functional import interpolate

from pixart.control import fit, grey, opaque


def ramp(height: int, width: int) -> torch.Tensor:
    """Red grows from left to right, green from top to bottom."""
    red = torch.linspace(0, 1, width).expand(height, width)
    green = torch.linspace(0, 1, height)[:, None].expand(height, width)
    return torch.stack([red, green, torch.zeros(height, width)])[None]


def test_zero_keeps_the_image_itself():
    image = ramp(30, 40)
    assert fit(image) is image
    assert torch.equal(fit(image, 40, 30), image)


@pytest.mark.parametrize("width, height, want", ((80, 0, (60, 80)), (0, 15, (15, 20)), (7, 0, (5, 7)), (0, 1, (1, 1)),
                                                 (33, 91, (91, 33)), (1, 1, (1, 1)), (640, 8, (8, 640))))
def test_the_size_asked_for(width, height, want):
    assert fit(ramp(30, 40), width, height).shape[-2:] == want


def test_one_side_given_is_plain_scaling():
    want = interpolate(ramp(30, 40), (45, 60), mode="bilinear", antialias=True)
    assert torch.equal(fit(ramp(30, 40), width=60), want)


def test_what_reaches_beyond_is_cut_off_evenly():
    """A square out of a wide image: full height, the middle of the width, nothing stretched."""
    square = fit(ramp(32, 64), 32, 32)
    assert torch.equal(square, ramp(32, 64)[..., 16:48])
    tall = fit(ramp(64, 64), 16, 32)
    assert tall[0, 0, 0, 0].item() == pytest.approx(0.25, abs=0.02)
    assert tall[0, 0, 0, -1].item() == pytest.approx(0.75, abs=0.02)
    assert tall[0, 1, 0, 0] < 0.03 and tall[0, 1, -1, 0] > 0.97


def test_shrinking_smooths():
    """Every second column white: grey when halved, not a lottery of columns."""
    stripes = torch.zeros(1, 1, 32, 32)
    stripes[..., ::2] = 1
    assert (fit(stripes, 16)[..., 2:-2] - 0.5).abs().max() < 0.13


def test_negative_sizes_are_refused():
    with pytest.raises(ValueError, match="-8 x 0"):
        fit(ramp(8, 8), -8)


def test_transparent_parts_take_the_ground():
    colours = ramp(8, 8)
    alpha = torch.tensor([0.0, 0.5, 1.0]).repeat_interleave(8).view(1, 1, 3, 8)
    image = torch.cat([colours[..., :3, :], alpha], 1)
    got = opaque(image, 0.25)
    want = image[:, :3] * alpha + 0.25 * (1 - alpha)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=0)
    assert torch.equal(got[..., 0, :], torch.full((1, 3, 8), 0.25))


def test_values_beyond_the_range_count_as_its_ends():
    assert opaque(torch.tensor([-0.5, 0.5, 1.5]).view(1, 1, 1, 3)).flatten().tolist() == [0, 0.5, 1]
    assert opaque(torch.ones(1, 3, 2, 2, dtype=torch.float16)).dtype == torch.float32


def test_grey_weighs_the_colours_as_television_does():
    got = grey(torch.eye(3).view(1, 3, 1, 3)).flatten()
    torch.testing.assert_close(got, torch.tensor([0.299, 0.587, 0.114]), atol=1e-6, rtol=0)
