"""The node that makes a negative prompt work without guidance."""
from typing import Any

from .arguments import checked

DEFAULTS = {"scale": 5.0, "tau": 2.5, "alpha": 0.5}        # as pixart.model.nag has them


class PixArtNAG:
    DESCRIPTION = ("Normalized attention guidance (NAG): makes a negative prompt work with models in 1 to 8 steps "
                   "(LCM, TDM, DMD), which run at cfg 1 and would ignore it. Takes about 1.1 times as long; a cfg "
                   "above 1 takes twice as long. Can be combined with cfg.")
    CATEGORY = "PixArt/model"
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The model that avoids the negative prompt, for any sampler.",)
    SEARCH_ALIASES = ["nag", "negative prompt", "normalized attention guidance", "avoid", "guidance", "lcm negative"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        share = {"min": 0.0, "max": 1.0, "step": 0.01}
        return {"required": {
            "model": ("MODEL", {"tooltip": "A PixArt model from Load PixArt, with its LoRAs."}),
            "negative": ("CONDITIONING", {"tooltip": "What to avoid: one prompt, encoded with the text encoder of "
                                                     "this model."}),
            "scale": ("FLOAT", {"default": DEFAULTS["scale"], "min": 1.0, "max": 50.0, "step": 0.1, "round": 0.01,
                                "tooltip": "How strongly it is avoided. 1: not at all; 3 to 9 are usual."}),
            "tau": ("FLOAT", {"default": DEFAULTS["tau"], "min": 1.0, "max": 10.0, "step": 0.1, "round": 0.01,
                              "tooltip": "Limits how far the negative prompt may push the image, whatever the scale. "
                                         "Lower it if colours burn."}),
            "alpha": ("FLOAT", {"default": DEFAULTS["alpha"], **share, "tooltip":
                                "How much of that push is used. 0: none; 1: all. Lower it if shapes break."}),
            "start": ("FLOAT", {"default": 0.0, **share, "tooltip":
                                "Where it starts, as a fraction of the steps. 0: at the first step."}),
            "end": ("FLOAT", {"default": 1.0, **share, "tooltip":
                              "Where it ends, as a fraction of the steps. 1: after the last step; equal to start: "
                              "no effect."}),
        }}

    @checked
    def apply(self, model: Any, negative: list, scale: float, tau: float, alpha: float, start: float,
              end: float) -> tuple[Any]:
        from .host.nag import with_nag
        return (with_nag(model, negative, scale, tau, alpha, start, end),)
