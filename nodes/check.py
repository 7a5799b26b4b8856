"""The node that looks at the parts of a workflow and says whether they fit together."""
from typing import Any

from .arguments import checked
from .host.node_text import show_text
from .latent import SIDE_INPUT


class PixArtCheck:
    DESCRIPTION = ("Says what the connected parts are, whether they fit together, how much memory they will need and "
                   "what is wrong. Connect any of them; nothing is drawn.")
    CATEGORY = "PixArt/utilities"
    FUNCTION = "check"
    RETURN_TYPES = ("STRING", "BOOLEAN")
    RETURN_NAMES = ("report", "fits")
    OUTPUT_TOOLTIPS = ("What was found, a line each.", "Whether nothing was found to be wrong.")
    OUTPUT_NODE = True
    SEARCH_ALIASES = ["model info", "diagnose", "memory", "vram", "compatibility", "validate"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {
            "width": ("INT", {**SIDE_INPUT, "tooltip": "Of the picture you want, in pixels; memory depends on it."}),
            "height": ("INT", {**SIDE_INPUT, "tooltip": "Of the picture you want, in pixels."}),
            "batch_size": ("INT", {"default": 1, "min": 1, "max": 64, "tooltip": "Pictures at once."}),
        }, "optional": {
            "model": ("MODEL", {"tooltip": "The diffusion model, of any loader."}),
            "clip": ("CLIP", {"tooltip": "The text encoder, of any loader."}),
            "vae": ("VAE", {"tooltip": "The VAE, of any loader."}),
            "control_net": ("CONTROL_NET", {"tooltip": "The ControlNet, of any loader."}),
        }}

    @checked
    def check(self, width: int, height: int, batch_size: int, model: Any = None, clip: Any = None, vae: Any = None,
              control_net: Any = None) -> tuple[str, bool]:
        from .host.fitness import examine
        found = examine(model, clip, vae, control_net, height, width, batch_size)
        show_text(found.text)
        return found.text, not found.problems
