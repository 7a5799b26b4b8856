"""The node that turns a prompt into conditioning as PixArt was trained on it."""
from typing import Any

from .arguments import checked
from .host.node_text import show_text


class PixArtTextEncode:
    DESCRIPTION = ("Encodes a prompt as in PixArt's training: cleaned and truncated at 120 tokens for alpha and "
                   "delta, as written and truncated at 300 for Sigma. Reports the number of tokens and any words "
                   "that were cut. Takes the CLIP from Load T5 for PixArt or the stock CLIPLoader (type pixart).")
    CATEGORY = "PixArt/conditioning"
    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING", "STRING")
    RETURN_NAMES = ("CONDITIONING", "report")
    OUTPUT_TOOLTIPS = ("For the positive or negative input of a sampler.", "Tokens used, and any words that were cut.")
    SEARCH_ALIASES = ["prompt", "negative prompt", "clip text encode", "t5 encode"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        from ..pixart.text.long import MODES  # not when the pack is imported: it imports all of the text encoder
        side = {"default": 0, "min": 0, "max": 16384, "step": 8}
        return {"required": {
            "clip": ("CLIP", {"tooltip": "The T5 text encoder."}),
            "text": ("STRING", {"multiline": True, "dynamicPrompts": True, "tooltip":
                     "The prompt: up to 120 tokens (about 90 words) for alpha and delta, 300 for Sigma. Usually "
                     "empty for a negative prompt. (word:1.2) adds weight, (word:0.8) reduces it; write \\( and \\) "
                     "for literal brackets."}),
            "family": (["auto", "alpha", "sigma"], {"default": "auto", "tooltip":
                       "How captions were processed in training. auto: as for the connected model, or alpha if none "
                       "is connected. alpha also covers delta, LCM and DMD."}),
            "width": ("INT", {**side, "tooltip": "Image width in pixels given to 1024 px alpha and delta models "
                                                 "(others ignore it). 0: that of the latent."}),
            "height": ("INT", {**side, "tooltip": "Image height in pixels given to the model. 0: that of the latent."}),
        }, "optional": {
            "model": ("MODEL", {"tooltip": "Tells auto the family, and provides the learned empty caption."}),
            "null_caption": ("BOOLEAN", {"default": False, "advanced": True, "tooltip":
                             "For the negative input: uses the model's learned empty caption, as the official alpha "
                             "scripts do, with as many tokens as the text has (enter the positive prompt)."}),
            "long_prompt": (list(MODES), {"default": "truncate", "advanced": True, "tooltip":
                            "For prompts longer than the training captions. truncate: cut, as in training. whole: "
                            "encoded in one go. segments: each sentence encoded separately, then concatenated "
                            "(LongAlign)."}),
            "inner_ends": ("BOOLEAN", {"default": False, "advanced": True, "tooltip":
                           "For segments: keep the end token of every sentence, not only of the last."}),
        }}

    @checked
    def encode(self, clip: Any, text: str, family: str, width: int, height: int, model: Any = None,
               null_caption: bool = False, long_prompt: str = "truncate",
               inner_ends: bool = False) -> tuple[list, str]:
        from ..pixart.text.long import check_mode
        from .host import text as host
        check_mode(long_prompt, inner_ends)
        automatic = family == "auto"
        rules = host.PROMPT_RULES["alpha" if automatic else family]
        if automatic and model is not None:
            rules = host.rules_of(model)
        extra: dict[str, object] = {"width": width, "height": height} if width and height else {}
        conditioning, report = host.encode_long_prompt(clip, text, rules, extra, long_prompt, inner_ends)
        if null_caption:
            conditioning = host.null_conditioning(model, report.tokens, extra)
        notes = [report.summary, *report.notes]
        if automatic and model is None:
            notes.append("treated as for alpha; connect the model or choose family for Sigma")
        if report.cut:
            host.logger.warning("prompt: %s", report.summary)
        show_text("\n".join(notes))
        return conditioning, "\n".join(notes)
