"""The sheet of a comparison: images in rows and columns, labelled with their settings."""
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..files.images import to_image

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw as Pen
    from PIL.ImageFont import FreeTypeFont

WIDEST_SHEET = 8192         # pixels of the sheet's longer side; images shrink to fit
SHEET_GAP = 6               # pixels between images
LABEL_LINES = 6             # of a label at most


def labelled_sheet(images: Sequence[Sequence[Tensor]], columns: Sequence[str], rows: Sequence[str],
                   title: str = "") -> "Image":
    """images[row][column] (3, H, W) in 0..1, all of one size; labels are broken into lines, long ones cut with "...".

    Columns have their labels above, rows theirs on the left; "" for none.
    """
    from PIL import Image, ImageDraw

    width, height = cell_size(images)
    font = label_font(max(11, min(28, width // 14)))
    line = round(1.3 * font.size)
    left = SHEET_GAP + (max(width // 2, 7 * line) + SHEET_GAP if any(rows) else 0)
    wide = left + len(columns) * (width + SHEET_GAP)
    head = label_lines(title, wide - 2 * SHEET_GAP, font)
    above = [label_lines(label, width, font) for label in columns]
    beside = [label_lines(label, left - 2 * SHEET_GAP, font, max(1, height // line)) for label in rows]
    names = SHEET_GAP + line * len(head)
    top = names + line * max(map(len, above)) + SHEET_GAP
    sheet = Image.new("RGB", (wide, top + len(rows) * (height + SHEET_GAP)), "white")
    pen = ImageDraw.Draw(sheet)
    draw_lines(pen, head, (SHEET_GAP, SHEET_GAP), font)
    for column, label in enumerate(above):
        draw_lines(pen, label, (left + column * (width + SHEET_GAP), names), font)
    for row, (label, cells) in enumerate(zip(beside, images, strict=True)):
        y = top + row * (height + SHEET_GAP)
        draw_lines(pen, label, (SHEET_GAP, y), font)
        for column, image in enumerate(cells):
            shown = to_image(image.clamp(0, 1))
            if shown.size != (width, height):
                shown = shown.resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(shown, (left + column * (width + SHEET_GAP), y))
    return sheet


def cell_size(images: Sequence[Sequence[Tensor]]) -> tuple[int, int]:
    """Width and height at which the images are shown: their own, or less where the sheet would be too large."""
    height, width = images[0][0].shape[-2:]
    share = min(1.0, WIDEST_SHEET / (len(images[0]) + 1) / width, WIDEST_SHEET / (len(images) + 1) / height)
    return max(16, int(width * share)), max(16, int(height * share))


def label_font(size: int) -> "FreeTypeFont":
    """Pillow's own font, which needs no file. ImportError where Pillow was built without FreeType."""
    from PIL import ImageFont, features

    if not features.check("freetype2"):
        raise ImportError("labels need a Pillow with FreeType; reinstall it: pip install --force-reinstall pillow")
    font: FreeTypeFont = ImageFont.load_default(size)       # type: ignore[assignment]
    return font


def label_lines(text: str, room: int, font: "FreeTypeFont", most: int = LABEL_LINES) -> list[str]:
    """Lines of at most `room` pixels, between words where it can be; what is beyond `most` lines is cut with "..."."""
    lines = [""] if text else []
    for word in text.split():
        if lines[-1] and font.getlength(f"{lines[-1]} {word}") <= room:
            lines[-1] += f" {word}"
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:                     # a word longer than a line goes on in the next
            if lines[-1] and font.getlength(lines[-1] + letter) > room:
                lines.append("")
            lines[-1] += letter
    if len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and font.getlength(last + "...") > room:
        last = last[:-1]
    return [*lines[:most - 1], last.rstrip() + "..."]


def draw_lines(pen: "Pen", lines: Sequence[str], place: tuple[int, int], font: "FreeTypeFont") -> None:
    """Draw lines of text below each other, from `place` (x, y) on."""
    for number, text in enumerate(lines):
        pen.text((place[0], place[1] + number * round(1.3 * font.size)), text, fill="black", font=font)
