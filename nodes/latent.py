"""The node that chooses a picture size PixArt was trained on."""
from typing import Any

from ..pixart.resolution import ASPECT_RATIOS, LABELS, LEAST_SIDE, MOST_SIDE, nearest_size
from .arguments import checked
from .host.folders import only_mini
from .host.node_text import show_text

SIDE_INPUT = {"default": 1024, "min": LEAST_SIDE, "max": MOST_SIDE, "step": 16}


class PixArtEmptyLatent:
    DESCRIPTION = ("An empty latent of a size that PixArt was trained on. Away from these sizes pictures lose quality; "
                   "choose the resolution of the checkpoint and then a shape.")
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
                           "default": "128" if only_mini() else "1024", "tooltip":
                           "Trained resolution of the checkpoint: the side in pixels of its square picture. "
                           "128 is PixArt-mini, and chosen where there is no other model yet."}),
            "ratio": (list(LABELS), {"default": "1:1", "tooltip":
                      "Width : height. In brackets what the ratio stands in for. PixArt-mini has five shapes and takes "
                      "the nearest of these."}),
            "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096, "tooltip": "Pictures made at once."}),
        }}

    @checked
    def make(self, resolution: str, ratio: str, batch_size: int) -> tuple[dict[str, Any], int, int]:
        from .host.latent import empty_latent
        height, width = nearest_size(LABELS[ratio], 1.0, int(resolution))
        latent = empty_latent(height, width, batch_size)
        show_text(f"{width} x {height} pixels" + (f", {batch_size} pictures at once" if batch_size > 1 else ""))
        return latent, width, height
