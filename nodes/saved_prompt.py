"""Nodes that keep encoded prompts in files, so that an image needs no text encoder."""
from typing import Any

from .arguments import checked
from .host import folders
from .host.node_text import show_text


class PixArtSavePrompt:
    DESCRIPTION = ("Saves an encoded prompt to a file in models/pixart_prompts for PixArt Load Prompt. Images can "
                   "then be made without T5, even on machines too small for it.")
    CATEGORY = "PixArt/conditioning"
    FUNCTION = "save"
    OUTPUT_NODE = True
    RETURN_TYPES = ("CONDITIONING", "STRING")
    RETURN_NAMES = ("CONDITIONING", "report")
    OUTPUT_TOOLTIPS = ("The input, passed through.", "Name of the file.")
    SEARCH_ALIASES = ["save conditioning", "save embeddings", "cache prompt", "without t5"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {
            "conditioning": ("CONDITIONING", {"tooltip": "One prompt, from PixArt Text Encode."}),
            "name": ("STRING", {"default": "prompt", "tooltip":
                     "File name without folder or extension. A file with a different prompt is never overwritten."}),
            "text": ("STRING", {"default": "", "multiline": True, "tooltip":
                     "The text of the prompt, stored in the file and shown when it is loaded. It is not encoded."}),
        }}

    @classmethod
    def IS_CHANGED(cls, name: str | None = None, **_: object) -> float | str:
        from .host.saved_prompt import place_of
        return folders.deleted(name, place_of)

    @checked
    def save(self, conditioning: list, name: str, text: str) -> tuple[list, str]:
        from .host.saved_prompt import save_conditioning
        path = save_conditioning(conditioning, name, text)
        show_text(f"saved as {path.name}")
        return conditioning, path.name


class PixArtLoadPrompt:
    DESCRIPTION = ("Loads an encoded prompt written by PixArt Save Prompt or python -m pixart encode. No text "
                   "encoder is needed: connect it to a sampler.")
    CATEGORY = "PixArt/conditioning"
    FUNCTION = "load"
    RETURN_TYPES = ("CONDITIONING", "STRING")
    RETURN_NAMES = ("CONDITIONING", "report")
    OUTPUT_TOOLTIPS = ("For the positive or negative input of a sampler.", "The number of tokens, and the text of "
                                                                           "the prompt.")
    SEARCH_ALIASES = ["load conditioning", "load embeddings", "saved prompt", "without t5"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {
            "file": (folders.saved_prompts(), {"tooltip":
                     "An encoded prompt in models/pixart_prompts, made with the text encoder the model was trained "
                     "with. pixart-mini/... is included."}),
        }}

    @classmethod
    def VALIDATE_INPUTS(cls, file: str | None = None) -> bool | str:
        return folders.is_there(file, folders.saved_prompt_path)

    @classmethod
    def IS_CHANGED(cls, file: str | None = None) -> str:
        return folders.changed(file, folders.saved_prompt_path)

    @checked
    def load(self, file: str) -> tuple[Any, str]:
        from .host.saved_prompt import load_conditioning
        conditioning, line = load_conditioning(folders.saved_prompt_path(file))
        show_text(line)
        return conditioning, line
