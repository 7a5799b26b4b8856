"""The image sizes PixArt was trained on: pairs of height and width, chosen by aspect ratio.

An aspect ratio is height / width, as in training: below 1 is landscape. Widths and heights are pixels.
"""
from fractions import Fraction

# ratio -> (height, width) of the 1024 px class, ASPECT_RATIO_1024 of the official code; the other classes are these
# times 1/4, 1/2 and 2. The key, not the exact quotient, is what training showed the model as aspect ratio.
_RATIOS_1024: dict[float, tuple[int, int]] = {
    0.25: (512, 2048), 0.26: (512, 1984), 0.27: (512, 1920), 0.28: (512, 1856), 0.32: (576, 1792),
    0.33: (576, 1728), 0.35: (576, 1664), 0.4: (640, 1600), 0.42: (640, 1536), 0.48: (704, 1472),
    0.5: (704, 1408), 0.52: (704, 1344), 0.57: (768, 1344), 0.6: (768, 1280), 0.68: (832, 1216),
    0.72: (832, 1152), 0.78: (896, 1152), 0.82: (896, 1088), 0.88: (960, 1088), 0.94: (960, 1024),
    1.0: (1024, 1024), 1.07: (1024, 960), 1.13: (1088, 960), 1.21: (1088, 896), 1.29: (1152, 896),
    1.38: (1152, 832), 1.46: (1216, 832), 1.67: (1280, 768), 1.75: (1344, 768), 2.0: (1408, 704),
    2.09: (1472, 704), 2.4: (1536, 640), 2.5: (1600, 640), 2.89: (1664, 576), 3.0: (1728, 576),
    3.11: (1792, 576), 3.62: (1856, 512), 3.75: (1920, 512), 3.88: (1984, 512), 4.0: (2048, 512),
}


def _class_of(side: int) -> dict[float, tuple[int, int]]:
    return {ratio: (h * side // 1024, w * side // 1024) for ratio, (h, w) in _RATIOS_1024.items()}


LEAST_SIDE, MOST_SIDE = 16, 8192        # pixels that can be generated; 8192 is four times the largest trained side
# Side in pixels of the square -> ratio -> (height, width). 128 is PixArt-mini.
ASPECT_RATIOS: dict[int, dict[float, tuple[int, int]]] = {
    128: {0.6: (96, 160), 0.78: (112, 144), 1.0: (128, 128), 1.29: (144, 112), 1.67: (160, 96)},
    256: _class_of(256),
    512: _class_of(512),
    1024: _class_of(1024),
    2048: _class_of(2048),
}
RATIOS = tuple(_RATIOS_1024)


def latent_sides(height: int, width: int) -> tuple[int, int]:
    """(h, w) of the latent of an image of so many pixels; sides off the VAE's grid of 8 are rounded up."""
    return -(-height // 8), -(-width // 8)


def token_grid(height: int, width: int, patch: int) -> tuple[int, int]:
    """(h, w) in tokens of an image of so many pixels; latents off the grid of patches are rounded up too."""
    rows, columns = latent_sides(height, width)
    return -(-rows // patch), -(-columns // patch)


def nearest_ratio(height: float, width: float, side: int) -> float:
    """The trained ratio of class `side` that is nearest to height / width."""
    if height <= 0 or width <= 0:
        raise ValueError(f"an image of {width} x {height} pixels has no aspect ratio; both sides must be positive")
    return min(trained_sizes(side), key=lambda ratio: abs(ratio - height / width))


def nearest_size(height: float, width: float, side: int) -> tuple[int, int]:
    """(height, width) of the trained size of class `side` whose shape is nearest."""
    return trained_sizes(side)[nearest_ratio(height, width, side)]


def nearest_class(height: int, width: int) -> int:
    """The class whose area is nearest, by ratio of areas."""
    if height < 1 or width < 1:
        raise ValueError(f"an image of {width} x {height} pixels has no area; both sides must be positive")
    area = height * width
    return min(ASPECT_RATIOS, key=lambda side: max(area / side ** 2, side ** 2 / area))


def size_notice(height: int, width: int, side: int) -> str | None:
    """A notice for the user if an image is far from the sizes that a model of class `side` was trained on."""
    trained = nearest_class(side, side)
    nearest, share = nearest_class(height, width), height * width / trained ** 2
    if nearest == trained and 1 / 2 <= share <= 2:       # the smallest and the largest class have no other beyond them
        return None
    near_height, near_width = nearest_size(height, width, trained)
    return (f"{width} x {height}: far from the trained sizes. Use {near_width} x {near_height}, the nearest "
            "that this PixArt model was trained on.")


def trained_sizes(side: int) -> dict[float, tuple[int, int]]:
    """Trained ratios of one class, each with its (height, width)."""
    if side not in ASPECT_RATIOS:
        raise ValueError(f"no sizes are known for {side} px; use one of {', '.join(map(str, ASPECT_RATIOS))}")
    return ASPECT_RATIOS[side]


# What people call some of the ratios, width : height.
_KNOWN_AS = {0.42: "21:9", 0.57: "16:9", 0.68: "3:2", 0.78: "4:3", 1.29: "3:4", 1.46: "2:3", 1.75: "9:16"}


def _label(ratio: float) -> str:
    """Width : height of a ratio in lowest terms, as people read it, e.g. "1:1" or "7:4 (16:9)"."""
    height, width = _RATIOS_1024[ratio]
    exact = Fraction(width, height)
    known = f" ({_KNOWN_AS[ratio]})" if ratio in _KNOWN_AS else ""
    return f"{exact.numerator}:{exact.denominator}{known}"


# Label -> ratio (height / width), widest first.
LABELS: dict[str, float] = {_label(ratio): ratio for ratio in RATIOS}
