"""The trained image sizes."""
import pytest

from pixart import resolution


@pytest.mark.parametrize("side", [256, 512, 2048])
def test_other_classes_are_the_1024_table_scaled(side):
    for ratio, (height, width) in resolution.ASPECT_RATIOS[1024].items():
        assert resolution.ASPECT_RATIOS[side][ratio] == (height * side / 1024, width * side / 1024)


@pytest.mark.parametrize("side", [256, 512, 1024, 2048])
def test_a_class_has_forty_sizes_of_about_one_area(side):
    sizes = resolution.ASPECT_RATIOS[side].values()
    assert len(sizes) == 40
    assert all(0.89 < height * width / side ** 2 <= 1.01 for height, width in sizes)


@pytest.mark.parametrize("side", [256, 512, 1024, 2048])
def test_keys_are_height_over_width(side):
    for ratio, (height, width) in resolution.ASPECT_RATIOS[side].items():
        assert abs(height / width - ratio) < 0.011


@pytest.mark.parametrize("side", list(resolution.ASPECT_RATIOS))
def test_sides_fit_patches_of_two_latent_pixels(side):
    assert all(h % 16 == 0 and w % 16 == 0 for h, w in resolution.ASPECT_RATIOS[side].values())


def test_landscape_is_wider_than_high():
    assert resolution.nearest_size(1080, 1920, 1024) == (768, 1344)
    assert resolution.nearest_size(1920, 1080, 1024) == (1344, 768)


def test_the_nearest_class_of_a_known_size_is_its_own():
    for side, sizes in resolution.ASPECT_RATIOS.items():
        assert all(resolution.nearest_class(*size) == side for size in sizes.values())


def test_between_two_classes_the_ratio_of_areas_decides():
    """Twice the area of one and half of the other lie as far from both: at 724 pixels."""
    assert (resolution.nearest_class(720, 720), resolution.nearest_class(730, 730)) == (512, 1024)
    for size in ((0, 512), (512, -1)):
        with pytest.raises(ValueError, match="no area; both sides must be positive"):
            resolution.nearest_class(*size)


def test_sides_off_the_grid_are_rounded_up():
    assert resolution.latent_sides(64, 65) == (8, 9) and resolution.latent_sides(1, 8) == (1, 1)
    assert resolution.token_grid(64, 65, 2) == (4, 5) and resolution.token_grid(48, 56, 2) == (3, 4)
    assert resolution.token_grid(64, 72, 4) == (2, 3)


@pytest.mark.parametrize("height, width", [(0, 512), (-512, 512)])
def test_impossible_sizes_are_refused(height, width):
    with pytest.raises(ValueError, match="positive"):
        resolution.nearest_ratio(height, width, 512)


def test_an_unknown_class_names_the_known_ones():
    with pytest.raises(ValueError, match="300 px.*128, 256, 512, 1024, 2048"):
        resolution.trained_sizes(300)


def test_labels_name_width_before_height_and_every_ratio_once():
    assert len(resolution.LABELS) == 40
    assert resolution.LABELS["1:1"] == 1.0
    assert resolution.LABELS["7:4 (16:9)"] == 0.57
    assert resolution.LABELS["4:7 (9:16)"] == 1.75


def test_a_ratio_is_known_as_the_one_it_is_nearest_to():
    named = {label.split("(")[1].rstrip(")"): ratio for label, ratio in resolution.LABELS.items() if "(" in label}
    assert set(named) == {"21:9", "16:9", "3:2", "4:3", "3:4", "2:3", "9:16"}
    for name, ratio in named.items():
        width, height = map(int, name.split(":"))
        nearest = min(abs(each - height / width) for each in resolution.RATIOS)     # 4:3 lies between two
        assert abs(ratio - height / width) == pytest.approx(nearest), name


def test_an_image_far_from_the_trained_sizes_is_noticed_with_the_nearest_one():
    assert resolution.size_notice(1024, 1024, 1024) is None and resolution.size_notice(768, 1344, 1024) is None
    assert resolution.size_notice(96, 128, 128) is None and resolution.size_notice(2048, 4096, 2048) is None
    assert "16 x 16: far from the trained sizes. Use 128 x 128" in resolution.size_notice(16, 16, 128)
    assert "4096 x 4096: far from the trained sizes. Use 2048 x 2048" in resolution.size_notice(4096, 4096, 2048)
    notice = resolution.size_notice(256, 512, 1024)
    assert notice is not None and notice.startswith("512 x 256: far from the trained sizes. Use 1408 x 704, ")
