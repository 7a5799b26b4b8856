"""Sketches as text: what is drawn comes back, and nothing but a small PNG is taken."""
import base64
import struct
import time
import zlib
from io import BytesIO

import pytest
import torch
from PIL import Image

from pixart.control.sketch import LONGEST_SKETCH, SKETCH_PREFIX, read_sketch, write_sketch


def text_of(data: bytes) -> str:
    return SKETCH_PREFIX + base64.b64encode(data).decode()


def stored(image: Image.Image, kind: str = "PNG") -> bytes:
    file = BytesIO()
    image.save(file, format=kind)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """An 8-bit grey PNG of that size in its header, with these chunks behind it."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def lines(height: int = 48, width: int = 64) -> torch.Tensor:
    drawn = torch.zeros(1, 1, height, width)
    drawn[..., 10:12, 4:40] = 1
    return drawn


def test_what_is_written_is_read_back():
    assert torch.equal(read_sketch(write_sketch(lines()), 64, 48), lines())


def test_nothing_drawn_is_black():
    assert torch.equal(read_sketch("", 80, 72), torch.zeros(1, 1, 72, 80))


def test_another_size_is_covered_without_stretching():
    square = torch.zeros(1, 1, 32, 64)
    square[..., 8:24, 24:40] = 1
    read = read_sketch(write_sketch(square), 64, 64)
    assert read.shape == (1, 1, 64, 64) and read.mean().item() == pytest.approx(32 * 32 / 64 / 64, rel=0.02)


def test_transparent_paper_is_black_and_colours_become_grey():
    image = Image.new("RGBA", (64, 48), (255, 255, 255, 0))
    image.paste((255, 0, 0, 255), (0, 0, 32, 48))
    read = read_sketch(text_of(stored(image)), 64, 48)
    assert read[..., 32:].max() == 0 and read[..., :32].unique().item() == pytest.approx(0.299)


@pytest.mark.parametrize("mode", ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"))
def test_every_mode_of_a_png_has_its_white(mode):
    image = Image.new(mode, (64, 48), 65535 if mode == "I;16" else "white")
    assert torch.equal(read_sketch(text_of(stored(image)), 64, 48), torch.ones(1, 1, 48, 64))


@pytest.mark.parametrize("text", ("/etc/hostname", "image.png", "http://127.0.0.1/a.png", "file:///a.png", " ",
                                  "data:image/jpeg;base64,AAAA", "data:image/svg+xml;base64,AAAA", "../input/a.png"))
def test_a_place_or_another_kind_is_no_sketch(text):
    with pytest.raises(ValueError, match="expected a PNG as data:image/png;base64"):
        read_sketch(text, 64, 48)


@pytest.mark.parametrize("data, told", (
    (b"", "empty"), (b"no image", "not a PNG"), (stored(Image.new("RGB", (64, 48)), "JPEG"), "not a PNG"),
    (stored(Image.new("RGB", (64, 48)), "GIF"), "not a PNG"), (png(64, 48), "damaged or cut off"),
    (stored(Image.effect_noise((64, 48), 90))[:-900], "damaged or cut off"),
    (png(2049, 64), "2049 x 64 pixels, more than 2048 a side"), (png(30_000, 30_000), "cannot be opened"),
    (png(64, 48, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000), 9))), "cannot be opened")),
    ids=("empty", "text", "jpeg", "gif", "no pixels", "cut off", "large", "bomb", "text bomb"))
def test_what_cannot_be_a_drawing_is_refused_at_once(data, told):
    started = time.process_time()
    with pytest.raises(ValueError, match="the sketch cannot be used, .*" + told):
        read_sketch(text_of(data), 64, 48)
    assert time.process_time() - started < 1


def test_letters_that_are_not_base64_are_refused():
    with pytest.raises(ValueError, match="the sketch cannot be used"):
        read_sketch(SKETCH_PREFIX + "<script>", 64, 48)


def test_a_very_long_text_is_refused_unread():
    with pytest.raises(ValueError, match="more than 2,000,000"):
        read_sketch(SKETCH_PREFIX + "A" * LONGEST_SKETCH, 64, 48)
