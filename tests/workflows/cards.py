"""Thumbnails of workflows whose weights are not in this repository: `python tests/workflows/cards.py` draws them.

The page's template browser shows thumbnails 230 pixels wide, where an image of the graph cannot be read.
"""
import sys
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).resolve().parents[2] / "workflows"
SIDE = 360                  # pixels
COLOURS = {"PixArt-alpha": "#23415f", "PixArt-delta": "#274d3c", "PixArt-Sigma": "#4a3059", "PixArt DMD": "#5c3d22"}


class Card(NamedTuple):
    family: str
    size: str
    lines: tuple[str, ...]


CARDS = {
    "alpha-256": Card("PixArt-alpha", "256 px", ("20 steps, CFG 4.5",)),
    "alpha-256-sam": Card("PixArt-alpha", "256 px", ("before fine-tuning:", "a base for training")),
    "alpha-512": Card("PixArt-alpha", "512 px", ("20 steps, CFG 4.5",)),
    "alpha-512-control-hed": Card("PixArt-alpha", "512 px", ("ControlNet: edges", "of a photograph")),
    "alpha-1024": Card("PixArt-alpha", "1024 px", ("20 steps, CFG 4.5", "all aspect ratios")),
    "alpha-1024-lcm-lora": Card("PixArt-alpha", "1024 px", ("4 steps", "with an LCM LoRA")),
    "alpha-1024-long-prompt": Card("PixArt-alpha", "1024 px", ("prompts of any length",)),
    "delta-1024-lcm-8bit-t5": Card("PixArt-delta", "1024 px", ("4 steps", "8 GB of GPU memory")),
    "delta-1024-img2img-lcm": Card("PixArt-delta", "1024 px", ("4 steps", "image to image")),
    "delta-1024-control-hed-lcm": Card("PixArt-delta", "1024 px", ("4 steps, ControlNet:", "edges of a photograph")),
    "dmd-512": Card("PixArt DMD", "512 px", ("one step",)),
    "sigma-256": Card("PixArt-Sigma", "256 px", ("fast drafts",)),
    "sigma-512": Card("PixArt-Sigma", "512 px", ("20 steps, CFG 4.5",)),
    "sigma-1024": Card("PixArt-Sigma", "1024 px", ("20 steps, CFG 4.5", "long captions")),
    "sigma-1024-fp8-4bit-t5": Card("PixArt-Sigma", "1024 px", ("for small GPUs:", "fp8, T5 in 4 bits")),
    "sigma-2k": Card("PixArt-Sigma", "2K", ("20 steps, CFG 4.5",)),
    "sigma-2k-two-pass-upscale": Card("PixArt-Sigma", "1024 px to 2K", ("two passes",)),
}


def drawn(card: Card) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), COLOURS[card.family])
    pen = ImageDraw.Draw(image)
    small = [(255 + 36 * number, 28, line) for number, line in enumerate(card.lines)]
    for y, size, text in [(110, 46, card.family), (190, 46, card.size), *small]:
        pen.text((SIDE / 2, y), text, "white", ImageFont.load_default(size), anchor="mm")
    return image


def main() -> None:
    for name, card in CARDS.items():
        drawn(card).save(FOLDER / f"{name}.jpg", quality=90)
        sys.stdout.write(f"{name}.jpg\n")


if __name__ == "__main__":
    main()
