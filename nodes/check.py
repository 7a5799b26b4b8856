"""The node that looks at the parts of a workflow and says whether they fit together."""
from typing import Any

from .arguments import checked
from .host.node_text import show_text
from .latent import SIDE_INPUT


class PixArtCheck:
    DESCRIPTION = ("Reports what the connected models are, whether they fit together, how much memory they need and "
                   "what is wrong. Connect any of them; no image is made.")
    CATEGORY = "PixArt/utilities"
    FUNCTION = "check"
    RETURN_TYPES = ("STRING", "BOOLEAN")
    RETURN_NAMES = ("report", "fits")
    OUTPUT_TOOLTIPS = ("The findings, one per line.", "True if no problem was found.")
    OUTPUT_NODE = True
    SEARCH_ALIASES = ["model info", "diagnose", "memory", "vram", "compatibility", "validate"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {
            "width": ("INT", {**SIDE_INPUT, "tooltip": "Width of the intended image in pixels, for the memory "
                                                       "estimate."}),
            "height": ("INT", {**SIDE_INPUT, "tooltip": "Height of the intended image in pixels."}),
            "batch_size": ("INT", {"default": 1, "min": 1, "max": 64, "tooltip": "Images per batch."}),
        }, "optional": {
            "model": ("MODEL", {"tooltip": "The diffusion model, from any loader."}),
            "clip": ("CLIP", {"tooltip": "The text encoder, from any loader."}),
            "vae": ("VAE", {"tooltip": "The VAE, from any loader."}),
            "control_net": ("CONTROL_NET", {"tooltip": "The ControlNet, from any loader."}),
        }}

    @checked
    def check(self, width: int, height: int, batch_size: int, model: Any = None, clip: Any = None, vae: Any = None,
              control_net: Any = None) -> tuple[str, bool]:
        from .host.fitness import examine
        found = examine(model, clip, vae, control_net, height, width, batch_size)
        show_text(found.text)
        return found.text, not found.problems
