"""Edge maps without weights, by properties that follow from what an edge is."""
import builtins

import pytest
import torch
from torch.nn.functional import max_pool2d

from pixart.control import EDGE_METHODS, canny, drawing, edge_maps, soft_edges
from pixart.control.edges import _ridges

FINDERS = {"canny": canny, "soft": soft_edges}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def square(side: int = 64, first: int = 20, last: int = 43) -> torch.Tensor:
    """White on black; the pixels `first` to `last` in both directions."""
    image = torch.zeros(1, 3, side, side)
    image[..., first:last + 1, first:last + 1] = 1
    return image


def enclosed_by(lines: torch.Tensor) -> torch.Tensor:
    """Pixels that a walk in four directions from the corner does not reach without crossing a line."""
    reached = torch.zeros_like(lines)
    reached[..., 0, 0] = 1
    while True:
        grown = torch.maximum(max_pool2d(reached, (3, 1), 1, (1, 0)), max_pool2d(reached, (1, 3), 1, (0, 1)))
        grown = grown * (lines == 0)
        if torch.equal(grown, reached):
            return (reached == 0) & (lines == 0)
        reached = grown


@pytest.mark.parametrize("blur", (1.0, 2.0))
def test_canny_outlines_a_square_with_one_thin_closed_line(blur):
    lines = canny(square(), blur=blur)
    assert set(lines.unique().tolist()) == {0.0, 1.0}
    near = torch.ones(64, 64)                   # what is not within a pixel of the square's border
    near[18:46, 18:46] = 0
    near[22:42, 22:42] = 1
    assert not lines[0, 0][near == 1].any()
    inside = enclosed_by(lines)
    assert inside[0, 0, 32, 32] and not inside[0, 0, 5, 5]
    assert 4 * 20 <= lines.sum() <= 4 * 26      # one pixel wide


def test_all_at_once_gives_what_one_by_one_gives():
    images = noise(3, 3, 30, 41)
    assert torch.equal(canny(images, together=True), canny(images))


def test_canny_thresholds_mean_what_is_documented():
    step = torch.zeros(1, 1, 32, 32)
    step[..., 16:] = 1
    assert canny(step, 3.9, 3.9, blur=0).any() and not canny(step, 4.1, 4.1, blur=0).any()
    assert canny(step, 2.5, 2.5, blur=1).any() and not canny(step, 2.7, 2.7, blur=1).any()


def test_canny_agrees_with_kornia_where_no_neighbours_are_equal():
    from kornia.filters import canny as reference
    image = noise(2, 1, 60, 80)
    for low, high in ((0.1, 0.3), (0.4, 0.8)):
        want = reference(image, low, high)[1]
        assert want.mean() > 0.02 and (canny(image, low, high) != want).float().mean() < 0.002


def test_a_sharp_step_is_one_line():
    """Its two sides have the same slope; one of them stays, everywhere the same."""
    step = torch.zeros(1, 1, 24, 24)
    step[..., 12:] = 1
    want = torch.zeros(1, 1, 24, 24)
    want[..., 11] = 1
    assert torch.equal(canny(step, blur=0), want)
    assert torch.equal(canny(step.mT, blur=0), want.mT)


@pytest.mark.parametrize("across, down, second, kept", [
    (1, 0, (2, 3), (2, 2)), (-1, 0, (2, 3), (2, 2)), (0, 1, (3, 2), (2, 2)), (1, 1, (3, 3), None),
    (1, -1, (1, 3), None)])
def test_of_two_equal_slopes_the_left_or_upper_stays_and_along_a_diagonal_neither(across, down, second, kept):
    """The rule of OpenCV. Alone, each stays."""
    slopes = torch.zeros(2, 1, 1, 6, 6)
    for place in ((2, 2), second):
        slopes[0][0, 0][place], slopes[1][0, 0][place] = across, down
        alone = torch.zeros(2, 1, 1, 6, 6)
        alone[0][0, 0][place], alone[1][0, 0][place] = across, down
        assert _ridges(*alone)[0, 0].nonzero().tolist() == [list(place)]
    assert _ridges(*slopes)[0, 0].nonzero().tolist() == ([] if kept is None else [list(kept)])


def test_a_faint_line_needs_a_strong_part():
    """What lies between low and high counts only where it is joined to something above high."""
    faint = torch.zeros(1, 1, 32, 64)
    faint[..., 16:, :] = 0.3
    assert not canny(faint, 0.4, 1.0).any()
    joined = faint.clone()
    joined[..., 16:, 32:] = torch.linspace(0.3, 1, 32)      # 2.6 * 0.3 is below high, 2.6 * 1 above
    assert canny(joined, 0.4, 1.0)[..., 15:17, :30].sum() == 30


@pytest.mark.parametrize("finder", FINDERS)
@pytest.mark.parametrize("value", (0.0, 0.37, 1.0))
def test_nothing_is_found_in_a_flat_image(finder, value):
    assert FINDERS[finder](torch.full((1, 3, 33, 47), value)).max() <= 1e-6


@pytest.mark.parametrize("blur", (0.0, 0.5, 1.0, 3.0))
def test_a_step_from_black_to_white_has_the_given_strength(blur):
    step = torch.zeros(1, 1, 40, 40)
    step[..., 20:] = 1
    edges = soft_edges(step, blur, strength=0.8)
    assert edges.max().item() == pytest.approx(0.8, abs=1e-5)
    assert edges[0, 0, 10].argmax().item() in (19, 20)


def test_soft_edges_turn_with_the_image():
    image = noise(1, 3, 31, 44)
    turned = soft_edges(image.rot90(1, (2, 3)))
    torch.testing.assert_close(turned, soft_edges(image).rot90(1, (2, 3)), atol=2e-6, rtol=0)
    assert (turned - turned.rot90(2, (2, 3))).abs().max() > 0.1


def test_soft_edges_see_colours_of_equal_brightness():
    image = torch.zeros(1, 3, 24, 24)
    image[:, 0, :, :12], image[:, 1, :, 12:] = 0.587, 0.299
    assert soft_edges(image)[..., 12].min() > 0.9 and not canny(image).any()


@pytest.mark.parametrize("method", EDGE_METHODS)
@pytest.mark.parametrize("size", ((1, 1), (1, 9), (2, 3), (3, 2), (5, 5), (17, 31)))
def test_any_size_and_any_channels(method, size):
    for channels in (1, 3, 4):
        maps = edge_maps(noise(2, channels, *size), method)
        assert maps.shape == (2, 1, *size) and maps.dtype == torch.float32
        assert maps.min() >= 0 and maps.max() <= 1


@pytest.mark.parametrize("method", EDGE_METHODS)
def test_a_map_does_not_depend_on_its_batch(method):
    images = noise(3, 3, 37, 53)
    together = edge_maps(images, method)
    assert torch.equal(together, torch.cat([edge_maps(image[None], method) for image in images]))


@pytest.mark.parametrize("method", EDGE_METHODS)
def test_grey_images_and_opaque_ones_give_the_same_map_as_rgb(method):
    grey = noise(1, 1, 29, 33)
    rgb = grey.expand(-1, 3, -1, -1)
    opaque = torch.cat([rgb, torch.ones_like(grey)], 1)
    want = edge_maps(grey, method)
    assert want.max() > 0.1
    assert torch.equal(edge_maps(rgb, method), want)
    torch.testing.assert_close(edge_maps(opaque, method), want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("finder", FINDERS)
@pytest.mark.parametrize("shade", (0.0, 1.0))
def test_a_shape_on_a_transparent_ground_has_an_outline(finder, shade):
    """Whatever colour is hidden under the transparent part."""
    shape = square()[:, :1]
    hidden = noise(1, 3, 64, 64)
    image = torch.cat([torch.where(shape == 1, torch.tensor(shade), hidden), shape], 1)
    edges = FINDERS[finder](image)
    assert enclosed_by((edges > 0.5).float())[0, 0, 32, 32]
    assert edges[..., :16, :].max() < 1e-6


def test_a_drawing_is_used_unchanged():
    lines = noise(2, 1, 19, 23)
    assert torch.equal(drawing(lines), lines)
    assert torch.equal(drawing(lines.expand(-1, 3, -1, -1)), lines)
    assert torch.equal(drawing(lines, dark_on_light=True), 1 - lines)


@pytest.mark.parametrize("ink, method", ((1.0, "none"), (0.0, "invert")))
def test_ink_on_a_transparent_sheet_becomes_white_on_black(ink, method):
    shape = square()[:, :1]
    image = torch.cat([torch.full((1, 3, 64, 64), ink), shape], 1)
    assert torch.equal(edge_maps(image, method), shape)


@pytest.mark.parametrize("method", EDGE_METHODS)
def test_the_given_images_stay_as_they_were(method):
    for channels in (1, 3, 4):
        images = noise(2, channels, 20, 20)
        before = images.clone()
        edge_maps(images, method).add_(1)
        assert torch.equal(images, before)


@pytest.mark.parametrize("options, words", (
    ({"method": "canny", "low": 0.9, "high": 0.2}, "low <= high"),
    ({"method": "canny", "low": 0.0}, "0 < low"),
    ({"method": "soft", "blur": -1.0}, "blur -1"),
    ({"method": "soft", "blur": float("nan")}, "blur nan"), ({"method": "canny", "blur": 100.5}, "0 to 100 pixels"),
    ({"method": "soft", "strength": -2.0}, "strength -2"),
    ({"method": "sobel"}, "canny, soft, none, invert"),
))
def test_values_out_of_range_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        edge_maps(noise(1, 3, 8, 8), **options)


@pytest.mark.parametrize("shape", ((3, 8, 8), (1, 2, 8, 8), (1, 3, 0, 8), (0, 3, 8, 8)))
def test_what_is_no_batch_of_images_is_refused(shape):
    with pytest.raises(ValueError, match="expected .images, channels, height, width"):
        canny(torch.zeros(shape))


def test_without_kornia_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def absent(name, *rest, **named):
        if name.startswith("kornia"):
            raise ImportError(name)
        return real(name, *rest, **named)
    monkeypatch.setattr(builtins, "__import__", absent)
    for finder in FINDERS.values():
        with pytest.raises(ImportError, match="pip install \"kornia"):
            finder(torch.zeros(1, 3, 8, 8))
    assert not drawing(torch.zeros(1, 3, 8, 8)).any()
