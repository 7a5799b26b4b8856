"""Renders the scenes of PixArt-mini as anti-aliased images."""
import math
import random

import numpy as np
from PIL import Image, ImageDraw

from .scenes import CELLS, Scene, Thing

# Height and width in pixels of the 128 px class.
BUCKETS = ((128, 128), (112, 144), (144, 112), (96, 160), (160, 96))

BACKGROUND_RGB = {"black": (12, 12, 12), "white": (244, 244, 244), "grey": (128, 128, 128),
                  "sand": (214, 190, 142), "navy": (18, 28, 84)}
COLOUR_RGB = {"red": (222, 32, 38), "orange": (250, 136, 16), "yellow": (250, 226, 20), "green": (28, 156, 60),
              "cyan": (40, 214, 224), "blue": (40, 100, 248), "purple": (136, 44, 190), "pink": (255, 128, 196)}

# How the edge maps of these images are found: thresholds low enough for purple on navy.
CANNY = {"low": 0.1, "high": 0.2}

RADIUS = {"small": 24.0, "large": 40.0, "medium": 26.0}      # pixels in a 128 x 128 image
PAIR_RADIUS, PAIR_PLACES = 0.205, (0.265, 0.735)             # of two things: shares of the side they lie along
CELL_RADIUS, CELL_JITTER = 0.42, 0.04                        # of three and more: shares of the shorter side of a cell
STRIPE, DOT, SPACING = 7.0, 4.6, 14.0                        # stripe width, dot radius, grid of dots, in pixels
DARKER = 0.55                                                # tone of stripes and dots, as a share of the colour
HOLE = 0.52                                                  # inner radius of a ring, as a share of the outer
_OVERSAMPLE = 3


def render_scene(scene: Scene, height: int, width: int, rng: random.Random) -> np.ndarray:
    """The image of a scene, uint8 (height, width, 3). `rng` moves and resizes a little, within what the words say."""
    canvas = np.empty((height, width, 3), np.float32)
    canvas[:] = BACKGROUND_RGB[scene.background]
    for thing, (y, x, radius) in zip(scene.things, _layout(scene, height, width, rng)):
        _stamp(canvas, thing, y, x, radius)
    return canvas.round().astype(np.uint8)


def _layout(scene: Scene, height: int, width: int, rng: random.Random) -> list[tuple[float, float, float]]:
    """Centre y, centre x and radius of every thing, in pixels."""
    scale = (min(height, width) / 128) ** 0.7
    jitter = 3 * scale
    if scene.crowded:
        return _cells(scene, height, width, rng)
    if len(scene.things) == 1:
        radius = RADIUS[scene.things[0].size] * scale * rng.uniform(0.95, 1.05)
        return [_place(scene.position, height, width, radius, jitter, rng)]
    sideways = scene.relation == "left of"
    reach = width if sideways else height
    radius = min(RADIUS["medium"] * scale, PAIR_RADIUS * reach)
    layout = []
    for share in PAIR_PLACES:
        y = (0.5 if sideways else share) * height + rng.uniform(-jitter, jitter)
        x = (share if sideways else 0.5) * width + rng.uniform(-jitter, jitter)
        layout.append((y, x, radius * rng.uniform(0.95, 1.05)))
    return layout


def _cells(scene: Scene, height: int, width: int, rng: random.Random) -> list[tuple[float, float, float]]:
    """Near the middle of their cells."""
    side = min(height, width) / 3
    jitter, layout = CELL_JITTER * side, []
    for cell in map(CELLS.index, scene.cells):
        y = (cell // 3 + 0.5) * height / 3 + rng.uniform(-jitter, jitter)
        x = (cell % 3 + 0.5) * width / 3 + rng.uniform(-jitter, jitter)
        layout.append((y, x, CELL_RADIUS * side * rng.uniform(0.95, 1.05)))
    return layout


def _place(position: str, height: int, width: int, radius: float, jitter: float,
           rng: random.Random) -> tuple[float, float, float]:
    """Near the middle, or near the middle of one side with a margin of two pixels and more."""
    y = height / 2 + rng.uniform(-jitter, jitter)
    x = width / 2 + rng.uniform(-jitter, jitter)
    margin = radius + 2 + rng.uniform(0, jitter)
    y = {"top": margin, "bottom": height - margin}.get(position, y)
    x = {"left": margin, "right": width - margin}.get(position, x)
    return y, x, radius


def _stamp(canvas: np.ndarray, thing: Thing, y: float, x: float, radius: float) -> None:
    """Paints one thing into the float canvas (H, W, 3), in place."""
    top, left = max(0, int(y - radius - 2)), max(0, int(x - radius - 2))
    bottom, right = (min(side, int(centre + radius + 3)) for side, centre in zip(canvas.shape, (y, x)))
    size = ((right - left) * _OVERSAMPLE, (bottom - top) * _OVERSAMPLE)
    centre = ((x - left) * _OVERSAMPLE, (y - top) * _OVERSAMPLE)
    outline = Image.new("L", size)
    _outline(ImageDraw.Draw(outline), thing.shape, centre, radius * _OVERSAMPLE)
    paint = np.asarray(COLOUR_RGB[thing.colour], np.float32)
    colour: np.ndarray = paint
    if thing.texture != "plain":
        pattern = Image.new("L", size)
        _pattern(ImageDraw.Draw(pattern), thing.texture, centre, size)
        colour = paint * (1 - (1 - DARKER) * _coverage(pattern))
    cover = _coverage(outline)
    region = canvas[top:bottom, left:right]
    region += (colour - region) * cover


def _coverage(mask: Image.Image) -> np.ndarray:
    """An oversampled mask as the share of each pixel that it covers, (h, w, 1) in 0..1."""
    return np.asarray(mask.reduce(_OVERSAMPLE), np.float32)[..., None] / 255


def _outline(pen: ImageDraw.ImageDraw, shape: str, centre: tuple[float, float], radius: float) -> None:
    cx, cy = centre
    if shape in ("circle", "ring"):
        pen.ellipse((cx - radius, cy - radius, cx + radius, cy + radius), fill=255)
        hole = HOLE * radius if shape == "ring" else 0
        if hole:
            pen.ellipse((cx - hole, cy - hole, cx + hole, cy + hole), fill=0)
        return
    pen.polygon([(cx + radius * dx, cy + radius * dy) for dx, dy in CORNERS[shape]], fill=255)


def _pattern(pen: ImageDraw.ImageDraw, texture: str, centre: tuple[float, float], size: tuple[int, int]) -> None:
    """Level stripes or a grid of dots, fixed to the middle of the thing."""
    cx, cy = centre
    step = SPACING * _OVERSAMPLE
    rows = [cy + k * step for k in range(-4, 5)]
    for y in rows:
        if texture == "striped":
            half = STRIPE * _OVERSAMPLE / 2
            pen.rectangle((0, y - half, size[0], y + half), fill=255)
            continue
        dot = DOT * _OVERSAMPLE
        for x in (cx + k * step for k in range(-4, 5)):
            pen.ellipse((x - dot, y - dot, x + dot, y + dot), fill=255)


def _star() -> list[tuple[float, float]]:
    angles = [math.pi * k / 5 - math.pi / 2 for k in range(10)]
    return [(r * math.cos(a), r * math.sin(a)) for a, r in zip(angles, (1.0, 0.42) * 5)]


def _cross(half: float = 0.33, reach: float = 0.95) -> list[tuple[float, float]]:
    quarter = [(half, -reach), (half, -half), (reach, -half)]
    points = []
    for _ in range(4):
        points += quarter
        quarter = [(-y, x) for x, y in quarter]
    return points


CORNERS = {"square": [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)],
            "triangle": [(0.0, -0.92), (0.98, 0.8), (-0.98, 0.8)],
            "star": _star(), "cross": _cross()}
