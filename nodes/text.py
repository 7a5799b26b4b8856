"""The node that turns a prompt into conditioning as PixArt was trained on it."""
from typing import Any

from .arguments import checked
from .host.node_text import show_text


class PixArtTextEncode:
    DESCRIPTION = ("Encodes a prompt as in PixArt's training: cleaned and cut at 120 tokens for alpha and delta, as "
                   "written and cut at 300 for Sigma. Reports the tokens used and the words that were cut. Takes the "
                   "CLIP of Load T5 for PixArt or of the stock CLIPLoader (type pixart).")
    CATEGORY = "PixArt/conditioning"
    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING", "STRING")
    RETURN_NAMES = ("CONDITIONING", "report")
    OUTPUT_TOOLTIPS = ("For the positive or negative input of a sampler.", "Tokens used, and the words cut if any.")
    SEARCH_ALIASES = ["prompt", "clip text encode", "t5 encode"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        from ..pixart.text.long import MODES  # not when the pack is imported: it brings all of the text encoder
        side = {"default": 0, "min": 0, "max": 16384, "step": 8}
        return {"required": {
            "clip": ("CLIP", {"tooltip": "The T5 text encoder."}),
            "text": ("STRING", {"multiline": True, "dynamicPrompts": True, "tooltip":
                     "The prompt, up to 120 tokens (about 90 words) for alpha and delta, 300 for Sigma. Empty for a "
                     r"negative prompt. (word:1.2) counts more, (word:0.8) less; write \( and \) for brackets."}),
            "family": (["auto", "alpha", "sigma"], {"default": "auto", "tooltip":
                       "How captions were treated in training. auto: as the connected model was trained, or as alpha "
                       "when no model is connected. alpha also stands for delta, LCM and DMD."}),
            "width": ("INT", {**side, "tooltip": "Picture width in pixels that the 1024 px alpha and delta models are "
                              "told (others ignore it). 0: that of the latent."}),
            "height": ("INT", {**side, "tooltip": "Picture height in pixels, likewise. 0: that of the latent."}),
        }, "optional": {
            "model": ("MODEL", {"tooltip": "Lets auto know the family, and gives the learned empty caption."}),
            "null_caption": ("BOOLEAN", {"default": False, "advanced": True, "tooltip":
                             "For the negative input: gives the model's learned empty caption, as the official alpha "
                             "scripts do, with as many tokens as the text has (put the positive prompt there)."}),
            "long_prompt": (list(MODES), {"default": "truncate", "advanced": True, "tooltip":
                            "Prompts longer than the training captions. truncate: cut, as in training. whole: encoded "
                            "in one go. segments: every sentence by itself, put behind each other (LongAlign)."}),
            "inner_ends": ("BOOLEAN", {"default": False, "advanced": True, "tooltip":
                           "segments: keep the end token of every sentence, not of the last alone."}),
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
