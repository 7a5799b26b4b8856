"""Contact sheets: a row per prompt, a column per method."""
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from .prompts import Prompts

if TYPE_CHECKING:
    from PIL.Image import Image

CROP, ZOOM = 40, 4                       # side of a crop in pixels, and its magnification
_TITLE, _LINE, _LETTER = 24, 12, 6       # height of the titles, size of a letter of the prompts, pixels


class Column(Protocol):
    """Images (3, H, W) in 0..1 by the number of their prompt."""

    def __getitem__(self, number: int, /) -> Tensor: ...


def method_sheet(images: Mapping[str, Column], prompts: Prompts, rows: Sequence[int], cell: int = 160) -> "Image":
    """Images by the name of their column; rows: numbers of prompts, which stand above their images."""
    from PIL import Image, ImageDraw
    names = list(images)
    texts = [wrap(prompts.captions[number], len(names) * cell // _LETTER - 1) for number in rows]
    above = _LINE * max(map(len, texts)) + 4
    sheet = Image.new("RGB", (len(names) * cell, _TITLE + len(rows) * (above + cell)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, name in enumerate(names):
        pen.text((column * cell + 4, 6), name.split(", guidance")[0], fill="black")
    for row, (number, text) in enumerate(zip(rows, texts)):
        top = _TITLE + row * (above + cell)
        for line, words in enumerate(text):
            pen.text((4, top + 2 + line * _LINE), words, fill="black")
        for column, name in enumerate(names):
            image = _image(images[name][number])
            left = column * cell + (cell - image.width) // 2
            sheet.paste(image, (left, top + above + (cell - image.height) // 2))
    return sheet


def edge_sheet(images: Mapping[str, Column], prompts: Prompts, rows: Sequence[int]) -> "Image":
    """As `method_sheet`, for the crop of each image with the strongest edges, `ZOOM` times as large."""
    parts = {name: {number: magnified(column[number]) for number in rows} for name, column in images.items()}
    return method_sheet(parts, prompts, rows, CROP * ZOOM + 8)


def magnified(image: Tensor) -> Tensor:
    """(3, H, W) -> (3, CROP * ZOOM, CROP * ZOOM): where neighbouring pixels differ most, each pixel as a square."""
    steps = torch.zeros(image.shape[1:])
    for side in (1, 2):
        change = image.diff(dim=side).square().sum(0)
        steps[:change.shape[0], :change.shape[1]] += change
    sums = F.avg_pool2d(steps[None, None], CROP, stride=1)[0, 0]
    top, left = divmod(int(sums.argmax()), sums.shape[1])
    part = image[:, top:top + CROP, left:left + CROP]
    return part.repeat_interleave(ZOOM, 1).repeat_interleave(ZOOM, 2)


def _image(image: Tensor) -> "Image":
    from PIL import Image
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
