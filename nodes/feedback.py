"""The node that puts inner loop feedback on a PixArt model."""
from typing import Any

from .arguments import checked
from .host import folders
from .host.node_text import show_text


class PixArtFeedback:
    DESCRIPTION = ("Inner loop feedback (ILF): a small trained block feeds the result of the network's middle blocks "
                   "back into them, so that one step can replace two. Only for the model it was trained with (python "
                   "-m pixart train ilf). Use sampler euler, scheduler sgm_uniform and the number of steps given in "
                   "the report.")
    CATEGORY = "PixArt/model"
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL", "STRING")
    RETURN_NAMES = ("MODEL", "report")
    OUTPUT_TOOLTIPS = ("The diffusion model with feedback.",
                       "Which blocks run twice, and the number of steps it was trained for.")
    SEARCH_ALIASES = ["ilf", "inner loop feedback", "fewer steps", "accelerate", "speed"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        share = {"min": 0.0, "max": 1.0, "step": 0.01}
        return {"required": {
            "model": ("MODEL", {"tooltip": "The PixArt model that the feedback was trained with."}),
            "file": (folders.lora_files(), {"tooltip": "A file made by python -m pixart train ilf, in models/loras."}),
            "start": ("FLOAT", {"default": 0.0, **share, "tooltip":
                      "Where feedback starts, as a fraction of the steps. 0: at the first step."}),
            "end": ("FLOAT", {"default": 1.0, **share, "tooltip":
                    "Where feedback ends, as a fraction of the steps. 1: after the last step; equal to start: no "
                    "feedback."}),
        }}

    @classmethod
    def VALIDATE_INPUTS(cls, file: str | None = None) -> bool | str:
        return folders.is_there(file, folders.lora_path)

    @classmethod
    def IS_CHANGED(cls, file: str | None = None, **_: object) -> str:
        return folders.changed(file, folders.lora_path)

    @checked
    def apply(self, model: Any, file: str, start: float, end: float) -> tuple[Any, str]:
        from .host.feedback import apply_feedback
        patched, report = apply_feedback(model, folders.lora_path(file), start, end)
        show_text(report)
        return patched, report
