"""A sketch as text: the PNG that a page's canvas keeps in the workflow, read back without trusting it."""
import base64
import binascii
from io import BytesIO

import torch
from torch import Tensor

from ..files.images import BrokenImage, open_image, pixels_of
from .images import BLACK, fit, grey, opaque

SKETCH_PREFIX = "data:image/png;base64,"
LONGEST_SKETCH = 2_000_000         # characters
LARGEST_SKETCH = 2048              # pixels a side
SKETCH_REMEDY = "Draw on the canvas of PixArt Sketch, or leave it empty for a black image."


def read_sketch(text: str, width: int, height: int) -> Tensor:
    """The drawing (1, 1, height, width) in 0..1, white on black, from a data URL of a PNG; all black from "".

    It is scaled to cover that size, never stretched; what is transparent counts as black. Only the text is read: it
    never names a file or an address. Raises ValueError for anything but a PNG of at most 2048 x 2048 pixels.
    """
    if not text:
        return torch.zeros(1, 1, height, width)
    return fit(grey(opaque(decode_sketch(text), BLACK)), width, height)


def decode_sketch(text: str) -> Tensor:
    """RGB and opacity (1, 4, H, W) in 0..1 of a data URL."""
    if not text.startswith(SKETCH_PREFIX):
        raise ValueError(f"the sketch is {text[:30]!r}; expected a PNG as {SKETCH_PREFIX}... {SKETCH_REMEDY}")
    if len(text) > LONGEST_SKETCH:
        raise ValueError(f"the sketch has {len(text):,} characters, more than {LONGEST_SKETCH:,}; draw fewer or "
                         "plainer lines, or on a smaller canvas")
    try:
        data = base64.b64decode(text[len(SKETCH_PREFIX):], validate=True)
        with open_image(BytesIO(data), ("PNG",)) as image:
            if max(image.size) > LARGEST_SKETCH:
                raise BrokenImage(f"it has {image.width} x {image.height} pixels, more than {LARGEST_SKETCH} a "
                                  "side")
            return pixels_of(image)
    except (BrokenImage, binascii.Error) as error:
        raise ValueError(f"the sketch cannot be used, {error}. {SKETCH_REMEDY}") from error


def write_sketch(image: Tensor) -> str:
    """The data URL of a drawing (1, 1, H, W) in 0..1, as the canvas writes it: for programs that queue a workflow."""
    from PIL import Image

    stored = BytesIO()
    pixels = (image[0, 0] * 255).round().byte().cpu().numpy()
    Image.fromarray(pixels).save(stored, format="PNG", optimize=True)
    return SKETCH_PREFIX + base64.b64encode(stored.getvalue()).decode()
