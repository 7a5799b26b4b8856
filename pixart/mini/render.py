"""Renders many scenes at once, on any device: the same shapes as `images`, from numbers.

`images` renders a scene with PIL and is what images are compared with; this renders what is trained on, fast enough
to make every image afresh. Shapes: B images, K things at most in one, H x W pixels.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..train.draws import draw_rows
from .images import (
    BACKGROUND_RGB,
    CELL_JITTER,
    CELL_RADIUS,
    COLOUR_RGB,
    CORNERS,
    DARKER,
    DOT,
    HOLE,
    PAIR_PLACES,
    PAIR_RADIUS,
    RADIUS,
    SPACING,
    STRIPE,
)
from .scenes import BACKGROUNDS, CELLS, COLOURS, PLACES, RELATIONS, SHAPES, SIZES, TEXTURES, Scene

THINGS = 5                     # most things in a scene
CODE = 4 + 4 * THINGS          # numbers that say what a scene holds
_ATLAS, _REACH = 192, 1.35     # side of the tables of distances, and how far they reach in radii
_WIDER = 1 / 6                 # pixels: PIL draws outlines half a subpixel too wide


def encode_scene(scene: Scene) -> list[int]:
    """CODE numbers: background, things, position or relation, size, and of every thing shape, colour, texture, cell."""
    first, count = scene.things[0], len(scene.things)
    place = {1: lambda: PLACES.index(scene.position), 2: lambda: RELATIONS.index(scene.relation)}
    code = [BACKGROUNDS.index(scene.background), count, place.get(count, lambda: 0)(),
            SIZES.index(first.size) if count == 1 else 0]
    for index in range(THINGS):
        if index >= count:
            code += [-1, 0, 0, 0]
            continue
        thing = scene.things[index]
        code += [SHAPES.index(thing.shape), COLOURS.index(thing.colour), TEXTURES.index(thing.texture),
                 CELLS.index(scene.cells[index]) if scene.crowded else 0]
    return code


@dataclass(frozen=True)
class Arrangement:
    """What is painted where. background (B,); the others (B, K): shape, -1 for nothing; middle and radius in pixels."""

    background: Tensor
    shape: Tensor
    colour: Tensor
    texture: Tensor
    y: Tensor
    x: Tensor
    radius: Tensor


def arrange(codes: Tensor, height: int, width: int, generator: torch.Generator) -> Arrangement:
    """Places the things of scenes, codes (B, CODE) integer, moved and resized a little within what the words say.

    The random numbers come from the generator's device.
    """
    device, batch = codes.device, len(codes)
    codes = codes.long()
    things = codes[:, 4:].view(batch, THINGS, 4)
    lots = draw_rows(torch.rand, (batch, THINGS, 3), generator).to(device)
    scale = (min(height, width) / 128) ** 0.7
    count, place = codes[:, 1, None], codes[:, 2, None]
    y, x, radius = _crowd(things[..., 3], height, width, lots)
    pair = _pair(place, height, width, lots, scale)
    single = _single(place, codes[:, 3], height, width, lots, scale)
    y, x, radius = (torch.where(count == 1, one, torch.where(count == 2, two, many))
                    for one, two, many in zip(single, pair, (y, x, radius)))
    return Arrangement(codes[:, 0], things[..., 0], things[..., 1], things[..., 2], y, x, radius)


def _jitter(lots: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """How far things are moved down and right, in pixels."""
    return (2 * lots[..., 0] - 1) * reach, (2 * lots[..., 1] - 1) * reach


def _resize(lots: Tensor) -> Tensor:
    return 0.95 + 0.1 * lots[..., 2]


def _crowd(cells: Tensor, height: int, width: int, lots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    side = min(height, width) / 3
    down, right = _jitter(lots, CELL_JITTER * side)
    return ((cells // 3 + 0.5) * height / 3 + down, (cells % 3 + 0.5) * width / 3 + right,
            CELL_RADIUS * side * _resize(lots))


def _pair(relation: Tensor, height: int, width: int, lots: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Left and right of each other (relation 0), or one above the other (1)."""
    sideways = relation == 0
    down, right = _jitter(lots, 3 * scale)
    share = torch.full((THINGS,), 0.5, device=lots.device)
    share[0], share[1] = PAIR_PLACES
    y = torch.where(sideways, 0.5, share) * height + down
    x = torch.where(sideways, share, 0.5) * width + right
    limit = torch.where(sideways, PAIR_RADIUS * width, PAIR_RADIUS * height)
    return y, x, limit.clamp(max=RADIUS["medium"] * scale) * _resize(lots)


def _single(position: Tensor, size: Tensor, height: int, width: int, lots: Tensor,
            scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Near the middle, or near the middle of one side with a margin of two pixels and more."""
    small, large = (RADIUS[name] for name in SIZES)
    radius = torch.where(size == 0, small, large)[:, None] * scale * _resize(lots)
    reach = 3 * scale
    down, right = _jitter(lots, reach)
    y, x = height / 2 + down, width / 2 + right
    margin = radius + 2 + (down + right).abs() / 2          # 0 to 3 pixels times the scale
    left, top = PLACES.index("left"), PLACES.index("top")
    x = torch.where(position == left, margin, torch.where(position == PLACES.index("right"), width - margin, x))
    y = torch.where(position == top, margin, torch.where(position == PLACES.index("bottom"), height - margin, y))
    return y, x, radius


def paint(layout: Arrangement, height: int, width: int, things: int = THINGS) -> Tensor:
    """Images (B, 3, H, W) in 0..1, in steps of 1 / 255, one thing over the other; at most `things` of each."""
    device = layout.background.device
    backgrounds, colours = (_table(tuple(palette.values()), device) for palette in (BACKGROUND_RGB, COLOUR_RGB))
    ys, xs = (torch.arange(side, device=device) + 0.5 for side in (height, width))
    canvas = backgrounds[layout.background][:, :, None, None].expand(-1, -1, height, width)
    for k in range(things):
        shape, radius = layout.shape[:, k], layout.radius[:, k, None, None]
        down, right = ys[:, None] - layout.y[:, k, None, None], xs - layout.x[:, k, None, None]
        outside = _distance(shape.clamp(min=0), down / radius, right / radius) * radius
        cover = _coverage(outside) * (shape >= 0)[:, None, None]
        tone = 1 - (1 - DARKER) * _pattern(layout.texture[:, k, None, None], down, right)
        colour = colours[layout.colour[:, k]][:, :, None, None] * tone[:, None]
        canvas = torch.lerp(canvas, colour, cover[:, None])
    return canvas.round() / 255


def _coverage(outside: Tensor) -> Tensor:
    """The share of a pixel inside an outline, from how far its middle lies outside, in pixels."""
    return (0.5 + _WIDER - outside).clamp(0, 1)


def _pattern(texture: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """The share of each pixel (B, H, W) that a level stripe or a dot covers, both fixed to the middle of the thing."""
    y, x = ((offset + SPACING / 2).remainder(SPACING) - SPACING / 2 for offset in (down, right))
    stripes = _coverage(y.abs() - STRIPE / 2)
    dots = _coverage((y.square() + x.square()).sqrt() - DOT)
    return torch.where(texture == TEXTURES.index("striped"), stripes,
                       torch.where(texture == TEXTURES.index("dotted"), dots, 0.0))


def _distance(shape: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """How far points (B, H, W), in radii from the middle, lie outside of shapes (B,); negative inside."""
    atlas = _atlas(x.device)
    v, u = ((side.clamp(-_REACH, _REACH) / _REACH + 1) / 2 * (_ATLAS - 1) for side in (y, x))
    top, left = v.floor().clamp(max=_ATLAS - 2), u.floor().clamp(max=_ATLAS - 2)
    corner = ((shape[:, None, None] * _ATLAS + top.long()) * _ATLAS + left.long())
    above = torch.lerp(atlas[corner], atlas[corner + 1], u - left)
    below = torch.lerp(atlas[corner + _ATLAS], atlas[corner + _ATLAS + 1], u - left)
    return torch.lerp(above, below, v - top)


@lru_cache(maxsize=4)
def _atlas(device: torch.device) -> Tensor:
    """Signed distances of all shapes of radius 1 on a grid, (shapes * side * side,)."""
    line = torch.linspace(-_REACH, _REACH, _ATLAS, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).view(-1, 2)           # x, y
    tables = []
    for name in SHAPES:
        if name in ("circle", "ring"):
            far = points.norm(dim=1)
            tables.append(torch.maximum(far - 1, HOLE - far) if name == "ring" else far - 1)
        else:
            tables.append(_polygon_distance(points, torch.tensor(CORNERS[name], dtype=torch.float64)))
    return torch.cat(tables).float().to(device)


def _polygon_distance(points: Tensor, corners: Tensor) -> Tensor:
    """Signed distance of points (n, 2) to a polygon (m, 2): to its nearest side, negative inside (even-odd rule)."""
    start, along = corners, corners.roll(-1, 0) - corners
    offset = points[:, None] - start
    share = ((offset * along).sum(-1) / along.square().sum(-1)).clamp(0, 1)
    far = (offset - share[..., None] * along).norm(dim=-1).amin(1)
    y, (y0, y1) = points[:, 1, None], (start[:, 1], (start + along)[:, 1])
    crosses = (y0 > y) != (y1 > y)
    at = start[:, 0] + (y - y0) / torch.where(y1 == y0, 1.0, y1 - y0) * along[:, 0]
    inside = (crosses & (points[:, 0, None] < at)).sum(1) % 2 == 1
    return torch.where(inside, -far, far)


@lru_cache(maxsize=8)
def _table(rows: Sequence[tuple[int, int, int]], device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32, device=device)
