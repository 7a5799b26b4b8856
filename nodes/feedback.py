"""The node that puts inner loop feedback on a PixArt model."""
from typing import Any

from .arguments import checked
from .host import folders
from .host.node_text import show_text


class PixArtFeedback:
    DESCRIPTION = ("Inner loop feedback (ILF): a small trained block sends what the middle of the network found back "
                   "to it, so that one step goes as far as two. Only for the model it was trained with (python -m "
                   "pixart train ilf). Sample with euler, scheduler sgm_uniform, in the steps that the report says.")
    CATEGORY = "PixArt/model"
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL", "STRING")
    RETURN_NAMES = ("MODEL", "report")
    OUTPUT_TOOLTIPS = ("The diffusion model with feedback.", "Which blocks run twice, and the steps it is made for.")
    SEARCH_ALIASES = ["ilf", "inner loop feedback", "fewer steps", "accelerate", "speed"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        share = {"min": 0.0, "max": 1.0, "step": 0.01}
        return {"required": {
            "model": ("MODEL", {"tooltip": "The PixArt model that the feedback was trained with."}),
            "file": (folders.lora_files(), {"tooltip": "A file of python -m pixart train ilf, in models/loras."}),
            "start": ("FLOAT", {"default": 0.0, **share, "tooltip":
                      "First step with feedback, as a share of all steps. 0: from the first."}),
            "end": ("FLOAT", {"default": 1.0, **share, "tooltip":
                    "Steps from this share on have no feedback. 1: all have it; equal to start: none."}),
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
