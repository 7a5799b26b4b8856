"""Nodes that load a PixArt ControlNet and apply it to prompts."""
from typing import Any

from ..pixart.dtypes import WEIGHT_DTYPES
from .arguments import checked
from .host import first_choice, folders
from .host.node_text import show_text


class PixArtControlNetLoader:
    DESCRIPTION = ("Loads a PixArt ControlNet: the published files, which include the base model (512 and 1024), "
                   "files with the ControlNet alone, and the diffusers research layout.")
    CATEGORY = "PixArt/loaders"
    FUNCTION = "load"
    RETURN_TYPES = ("CONTROL_NET", "STRING")
    RETURN_NAMES = ("CONTROL_NET", "report")
    OUTPUT_TOOLTIPS = ("For Apply PixArt ControlNet or the stock Apply ControlNet.",
                       "What was found in the file, in one line.")
    SEARCH_ALIASES = ["controlnet", "control net", "hed", "edges", "load controlnet model"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {
            "file": (folders.control_files(), {
                "default": first_choice.first_control(),
                "tooltip": "A PixArt ControlNet in models/controlnet. Files in models/diffusion_models and "
                           "models/checkpoints are listed too if their name contains control. pixart-mini/... is "
                           "included."}),
            "weight_dtype": (list(WEIGHT_DTYPES), {"default": "auto", "tooltip":
                             "Storage type of the weights; computation uses the data type of the MODEL. auto: as "
                             "Load PixArt does. fp8: half the memory of bf16, less precise."}),
        }}

    @classmethod
    def VALIDATE_INPUTS(cls, file: str | None = None) -> bool | str:
        return folders.is_there(file, folders.control_path)

    @classmethod
    def IS_CHANGED(cls, file: str | None = None, **_: object) -> str:
        return folders.changed(file, folders.control_path)

    @checked
    def load(self, file: str, weight_dtype: str) -> tuple[Any, str]:
        from .host.control import load_control_net
        control = load_control_net(folders.control_path(file), weight_dtype)
        show_text(control.description)
        return control, control.description


class PixArtControlNetApply:
    DESCRIPTION = ("Guides a PixArt model with an image through a PixArt ControlNet. Like the stock Apply "
                   "ControlNet, with extra settings for how deep into the model the control reaches. Chain several "
                   "nodes for several images.")
    CATEGORY = "PixArt/controlnet"
    FUNCTION = "apply"
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING")
    RETURN_NAMES = ("positive", "negative")
    OUTPUT_TOOLTIPS = ("The prompt with the control.",
                       "The negative prompt with the control; only available if one is connected.")
    SEARCH_ALIASES = ["controlnet", "apply controlnet", "use controlnet", "control net", "hed", "edges"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        percent = {"min": 0.0, "max": 1.0, "step": 0.001}
        return {"required": {
            "positive": ("CONDITIONING", {"tooltip": "The prompt."}),
            "control_net": ("CONTROL_NET", {"tooltip": "From Load PixArt ControlNet; it must belong to the MODEL."}),
            "image": ("IMAGE", {"tooltip":
                      "The control image; for the published weights a HED edge map, white on black (PixArt HED). It "
                      "is scaled to cover the latent and cropped at the centre. A batch of control images is "
                      "assigned to the images of the latent in turn."}),
            "vae": ("VAE", {"tooltip": "The VAE of the MODEL; it encodes the control image."}),
            "strength": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.01, "tooltip":
                         "0: no control. 1: as trained. 0.5 to 0.8 gives the prompt more freedom."}),
            "start_percent": ("FLOAT", {"default": 0.0, **percent, "tooltip":
                              "Where control starts, as a fraction of sampling: 0 is the first step."}),
            "end_percent": ("FLOAT", {"default": 1.0, **percent, "tooltip":
                            "Where control ends: 1 is the last step; 0.6 leaves the final details to the prompt."}),
            "fade": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.01, "tooltip":
                     "How fast control weakens from block to block: block 0, 1, 2, ... is scaled by (1 - fade) to "
                     "the power of its number. 0: all blocks at full strength. 1: only the first block."}),
            "blocks": ("INT", {"default": 0, "min": 0, "max": 100, "tooltip":
                       "Control only this many blocks, counted from the first. 0: all blocks of the ControlNet, 13 "
                       "in the published ones."}),
        }, "optional": {
            "negative": ("CONDITIONING", {"tooltip":
                         "The negative prompt, if the sampler uses one. Few-step models (LCM) need none."}),
        }}

    @checked
    def apply(self, positive: list, control_net: Any, image: Any, vae: Any, strength: float, start_percent: float,
              end_percent: float, fade: float, blocks: int, negative: list | None = None) -> tuple[list, Any]:
        from .host.control import apply_control
        return apply_control(positive, negative, control_net, image, vae, strength, start_percent, end_percent, fade,
                             blocks)
