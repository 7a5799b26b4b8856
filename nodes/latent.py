"""The node that chooses an image size PixArt was trained on."""
from typing import Any

from ..pixart.resolution import ASPECT_RATIOS, LABELS, LEAST_SIDE, MOST_SIDE, nearest_size
from .arguments import checked
from .host.first_choice import begins_with_mini
from .host.node_text import show_text

SIDE_INPUT = {"default": 1024, "min": LEAST_SIDE, "max": MOST_SIDE, "step": 16}


class PixArtEmptyLatent:
    DESCRIPTION = ("Makes an empty latent of a size PixArt was trained on. Other sizes lose quality. Choose the "
                   "resolution of the checkpoint, then the aspect ratio.")
    CATEGORY = "PixArt/latent"
    FUNCTION = "make"
    RETURN_TYPES = ("LATENT", "INT", "INT")
    RETURN_NAMES = ("LATENT", "width", "height")
    OUTPUT_TOOLTIPS = ("Zeros, for any sampler.", "Width in pixels.", "Height in pixels.")
    SEARCH_ALIASES = ["resolution", "aspect ratio", "empty latent image", "size"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {
            "resolution": ([str(side) for side in ASPECT_RATIOS], {
                           "default": "128" if begins_with_mini() else "1024", "tooltip":
                           "Training resolution of the checkpoint: the side of its square image in pixels. 128 is "
                           "for PixArt-mini, and the default if there is no other model yet."}),
            "ratio": (list(LABELS), {"default": "1:1", "tooltip":
                      "Width : height. In brackets the common ratio it replaces. PixArt-mini has five shapes; the "
                      "nearest one is used."}),
            "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096, "tooltip": "Number of images per batch."}),
        }}

    @checked
    def make(self, resolution: str, ratio: str, batch_size: int) -> tuple[dict[str, Any], int, int]:
        from .host.latent import empty_latent
        height, width = nearest_size(LABELS[ratio], 1.0, int(resolution))
        latent = empty_latent(height, width, batch_size)
        show_text(f"{width} x {height} pixels" + (f", {batch_size} images at once" if batch_size > 1 else ""))
        return latent, width, height
