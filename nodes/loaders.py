"""Nodes that load the transformer and the text encoder."""
from typing import Any

from ..pixart.config import VARIANTS
from ..pixart.dtypes import WEIGHT_DTYPES
from .arguments import checked
from .host import first_choice, folders
from .host.node_text import show_text


class PixArtLoader:
    DESCRIPTION = ("Loads any checkpoint of the PixArt family: alpha, delta (LCM), DMD, Sigma, 900M, in official "
                   ".pth, diffusers or ComfyUI layout; also PT-DiT. The MODEL works with KSampler, LoRA loaders and "
                   "other stock nodes.")
    CATEGORY = "PixArt/loaders"
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL", "STRING")
    RETURN_NAMES = ("MODEL", "report")
    OUTPUT_TOOLTIPS = ("The diffusion model.", "What was found in the file, in one line.")
    SEARCH_ALIASES = ["pixart", "pixart sigma", "pixart alpha", "pixart delta", "lcm", "pt-dit", "qihoo-t2x",
                      "load diffusion model", "load checkpoint", "unet loader", "fp8"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {
            "file": (folders.model_files(), {
                "default": first_choice.first_model(),
                "tooltip": "A checkpoint in models/diffusion_models or models/checkpoints. pixart-mini/... is "
                           "included. For a diffusers download, choose the transformer file and keep its config.json "
                           "next to it."}),
            "variant": (["auto", *VARIANTS], {"default": "auto", "tooltip":
                        "The training variant of the checkpoint. auto reads it from the weights if they determine "
                        "it, else from the file name; choose it yourself if the report says it was guessed."}),
            "weight_dtype": (list(WEIGHT_DTYPES), {"default": "auto", "tooltip":
                             "Storage type of the weights. auto: ComfyUI's choice on a GPU; on a CPU bf16 if the "
                             "processor is faster with it (AMX), else fp32. fp8: half the memory of bf16, less "
                             "precise. Quantised files (float8, int8, nvfp4): auto keeps them quantised, any other "
                             "choice dequantises them; fp4 files are always dequantised when loaded."}),
        }}

    @classmethod
    def VALIDATE_INPUTS(cls, file: str | None = None) -> bool | str:
        return folders.is_there(file, folders.model_path)

    @classmethod
    def IS_CHANGED(cls, file: str | None = None, **_: object) -> str:
        return folders.changed(file, folders.model_path)

    @checked
    def load(self, file: str, variant: str, weight_dtype: str) -> tuple[Any, str]:
        from .host.model import load_model
        from .host.notices import vae_for
        from .host.steps import usual_sampling
        model = load_model(str(folders.model_path(file)), variant, weight_dtype)
        found = model.model.model_config
        advice = [usual_sampling(model), f"decode with {vae_for(found.pixart)}"]
        show_text(f"{found.description}\n{'; '.join(filter(None, advice))}")
        return model, found.description


class PixArtT5Loader:
    DESCRIPTION = ("Loads PixArt's T5-XXL text encoder in 8, 4 or 16 bits. 8 bits: about 6 GB instead of 9.5, with "
                   "nearly the same images. The CLIP also works with the stock CLIP Text Encode.")
    CATEGORY = "PixArt/loaders"
    FUNCTION = "load"
    RETURN_TYPES = ("CLIP",)
    RETURN_NAMES = ("CLIP",)
    OUTPUT_TOOLTIPS = ("The text encoder.",)
    SEARCH_ALIASES = ["t5", "t5xxl", "text encoder", "8-bit", "bitsandbytes", "load clip", "clip loader"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {
            "file": (folders.text_encoders(), {
                "default": first_choice.first_text_encoder(),
                "tooltip": "A T5 v1.1 XXL encoder in models/text_encoders: a single file, or a Hugging Face folder "
                           "with config.json. pixart-mini/t5 is included."}),
            "bits": (["8", "4", "16", "int8", "auto"], {"default": "8", "tooltip":
                     "8: LLM.int8, the paper's choice, about 6 GB. 4: NF4, about 4 GB, slightly different images. "
                     "16: bfloat16, 9.5 GB. int8: 5 GB, without bitsandbytes; ComfyUI can offload parts of it. auto: "
                     "the best precision that fits into memory; the node shows which."}),
            "device": (["auto", "cpu"], {"default": "auto", "tooltip":
                       "auto: where ComfyUI runs text encoders; the GPU if it has room. cpu: leaves the GPU to the "
                       "image; a prompt then takes several seconds."}),
        }}

    @classmethod
    def VALIDATE_INPUTS(cls, file: str | None = None) -> bool | str:
        return folders.is_there(file, folders.text_encoder_path)

    @classmethod
    def IS_CHANGED(cls, file: str | None = None, **_: object) -> str:
        return folders.changed(file, folders.text_encoder_path)

    @checked
    def load(self, file: str, bits: str, device: str) -> tuple[Any]:
        from .host.text import load_clip
        return (load_clip(folders.text_encoder_path(file), int(bits) if bits.isdecimal() else bits, device),)
