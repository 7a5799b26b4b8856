"""Nodes that stand in for those of ComfyUI_ExtraModels, which is no longer maintained, in workflows saved with it."""
from ..pixart.resolution import ASPECT_RATIOS, RATIOS
from .arguments import checked

FORMER_KINDS = {"PixArtMS_XL_2": 1024, "PixArt_XL_2": 512, "PixArtMS_Sigma_XL_2_2K": 2048, "PixArtMS_Sigma_XL_2": 1024,
         "PixArtMS_Sigma_XL_2_512": 512}
FORMER_RATIOS = [f"{ratio:.2f}" for ratio in RATIOS]


class PixArtFormerSize:
    DESCRIPTION = ("Replaces PixArt Resolution Select of ComfyUI_ExtraModels in existing workflows, with the same "
                   "names and numbers. In new workflows use PixArt Empty Latent.")
    CATEGORY = "PixArt/utilities"
    FUNCTION = "choose"
    RETURN_TYPES = ("INT", "INT")
    RETURN_NAMES = ("width", "height")
    OUTPUT_TOOLTIPS = ("Width in pixels.", "Height in pixels.")
    DEPRECATED = True

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {
            "model": (list(FORMER_KINDS), {"default": "PixArtMS_XL_2", "tooltip":
                      "The model type as named by that extension; it sets the resolution: 512, 1024 or 2048 pixels."}),
            "ratio": (FORMER_RATIOS, {"default": "1.00", "tooltip": "Width divided by height, 0.25 to 4.00."}),
        }}

    @checked
    def choose(self, model: str, ratio: str) -> tuple[int, int]:
        width, height = ASPECT_RATIOS[FORMER_KINDS[model]][float(ratio)]   # theirs is the inverse of ours
        return width, height


class PixArtFormerSizeCondition:
    DESCRIPTION = ("Replaces PixArt Resolution Conditioning of ComfyUI_ExtraModels in existing workflows: sets the "
                   "image size given to 1024 px alpha and delta models. In new workflows use PixArt Text Encode.")
    CATEGORY = "PixArt/utilities"
    FUNCTION = "tell"
    RETURN_TYPES = ("CONDITIONING",)
    RETURN_NAMES = ("cond",)
    OUTPUT_TOOLTIPS = ("The prompt with the size.",)
    DEPRECATED = True

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        side = {"default": 1024, "min": 0, "max": 8192}
        return {"required": {
            "cond": ("CONDITIONING", {"tooltip": "The prompt."}),
            "width": ("INT", {**side, "tooltip":
                      "Image width in pixels given to the model. 0: that of the latent."}),
            "height": ("INT", {**side, "tooltip": "Image height in pixels given to the model. 0: that of the latent."}),
        }}

    @checked
    def tell(self, cond: list, width: int, height: int) -> tuple[list]:
        told = {"width": width, "height": height} if width and height else {}
        return ([[context, {**extra, **told}] for context, extra in cond],)
