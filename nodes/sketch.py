"""The node to draw on."""
from typing import Any

from .arguments import checked


class PixArtSketch:
    DESCRIPTION = ("A canvas for drawing lines, white on black, for PixArt Edges and Apply PixArt ControlNet. Live "
                   "runs the workflow while you draw: with a few-step model, the image follows the pen.")
    CATEGORY = "PixArt/controlnet"
    FUNCTION = "draw"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The drawing, white on black: for PixArt Edges with method none, or PixArt HED.",)
    SEARCH_ALIASES = ["draw", "canvas", "scribble", "paint", "painter", "pen", "doodle", "live"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        from ..pixart.control.sketch import LARGEST_SKETCH  # not when the pack is imported
        side = {"default": 512, "min": 64, "max": LARGEST_SKETCH, "step": 8, "tooltip":
                "Size of the canvas and of the output in pixels. Use the size of the final image."}
        return {"required": {
            "width": ("INT", side),
            "height": ("INT", side),
            "sketch": ("STRING", {"default": "", "widgetType": "PIXART_SKETCH", "socketless": True, "tooltip":
                       "The drawing, stored in the workflow: a PNG as data:image/png;base64,... of at most 2048 "
                       "pixels per side; empty for a black image. Scaled to cover the given size, never stretched."}),
        }}

    @checked
    def draw(self, width: int, height: int, sketch: str) -> tuple[Any]:
        from ..pixart.control.sketch import read_sketch
        from .host.edges import as_image
        return (as_image(read_sketch(sketch, width, height)),)
