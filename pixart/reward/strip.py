"""An image with the curve of its reward below, fast to draw: for watching while noise is optimised."""
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..files.images import to_image

if TYPE_CHECKING:
    from PIL.Image import Image

SHARE = 4           # the strip is one part in so many of the image's height
WIDEST = 512        # pixels
INK, BEST, PAPER = (40, 90, 200), (150, 150, 150), (250, 250, 250)


def with_curve(image: Tensor, totals: Sequence[float], iterations: int) -> "Image":
    """image (3, H, W) in 0..1, and below it the rewards so far on an axis of `iterations`, the best one as a line."""
    from PIL import Image

    shown = to_image(image.clamp(0, 1))
    shown.thumbnail((WIDEST, WIDEST))
    strip = curve(totals, iterations, shown.width, max(24, shown.height // SHARE))
    sheet = Image.new("RGB", (shown.width, shown.height + strip.height), PAPER)
    sheet.paste(shown, (0, 0))
    sheet.paste(strip, (0, shown.height))
    return sheet


def curve(totals: Sequence[float], iterations: int, width: int, height: int) -> "Image":
    """Rewards over iterations, 1 at the left edge and `iterations` at the right; what is not finite is left out."""
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (width, height), PAPER)
    points = [(index, total) for index, total in enumerate(totals) if math.isfinite(total)]
    if not points:
        return strip
    low, high = min(total for _, total in points), max(total for _, total in points)
    room, span = height - 9, (high - low) or 1.0
    places = [(4 + index * (width - 9) / max(1, iterations - 1), 4 + room * (1 - (total - low) / span))
              for index, total in points]
    pen = ImageDraw.Draw(strip)
    pen.line([(0, 4), (width, 4)], fill=BEST)
    if len(places) > 1:
        pen.line(places, fill=INK, width=2)
    pen.ellipse([places[-1][0] - 2, places[-1][1] - 2, places[-1][0] + 2, places[-1][1] + 2], fill=INK)
    return strip
