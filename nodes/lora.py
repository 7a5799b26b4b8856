"""The node that puts a LoRA on a PixArt model."""
from typing import Any

from .arguments import checked
from .host import first_choice, folders
from .host.node_text import show_text


class PixArtDeltaLoraLoader:
    DESCRIPTION = ("Applies a LoRA to a PixArt model at the scale it was trained with: LoRA, DoRA, LoHa, LoKr, "
                   "GLoRA, OFT, BOFT and full weight differences, from peft folders, the official trainers, "
                   "diffusers, OneTrainer, kohya, LyCORIS and ComfyUI. Reports how many keys were used. Chain "
                   "several nodes for several LoRAs.")
    CATEGORY = "PixArt/loaders"
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL", "STRING")
    RETURN_NAMES = ("MODEL", "report")
    OUTPUT_TOOLTIPS = ("The diffusion model with the LoRA.",
                       "What was found: layout, rank, scale and its source, keys used and ignored.")
    SEARCH_ALIASES = ["lora", "dora", "lokr", "loha", "lycoris", "lcm-lora", "peft", "load lora", "pixart lora"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {
            "model": ("MODEL", {"tooltip": "A PixArt model with the width and depth the LoRA was trained for."}),
            "file": (folders.lora_files(), {
                "default": first_choice.first_lora(),
                "tooltip": "A LoRA in models/loras. If peft saved it as a folder, put the whole folder there, "
                           "including adapter_config.json, and choose its adapter_model.safetensors."}),
            "strength": ("FLOAT", {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.01, "tooltip":
                         "1: as trained. 0: no effect. Good values are 0.5 to 1.2; negative values invert "
                         "the effect."}),
        }, "optional": {
            "alpha": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 4096.0, "step": 0.5, "tooltip":
                      "0: as given by the file. Otherwise the alpha used in training; the LoRA is scaled by alpha / "
                      "rank. Set it if the report says that alpha was assumed."}),
        }}

    @classmethod
    def VALIDATE_INPUTS(cls, file: str | None = None) -> bool | str:
        return folders.is_there(file, folders.lora_path)

    @classmethod
    def IS_CHANGED(cls, file: str | None = None, **_: object) -> str:
        return ";".join(folders.changed(file, path_of) for path_of in (folders.lora_path, folders.lora_config_path))

    @checked
    def load(self, model: Any, file: str, strength: float, alpha: float = 0.0) -> tuple[Any, str]:
        from .host.lora import apply_lora
        patched, report = apply_lora(model, folders.lora_path(file), strength, alpha or None)
        show_text(report)
        return patched, report


class PixArtLoraLoader(PixArtDeltaLoraLoader):
    """The first id of this node, which another pack uses too. Workflows saved with it open where it is free."""

    DEPRECATED = True
