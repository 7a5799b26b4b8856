"""Nodes that load the transformer and the text encoder."""
from typing import Any

from ..pixart.config import VARIANTS
from ..pixart.dtypes import WEIGHT_DTYPES
from .arguments import checked
from .host import folders
from .host.node_text import show_text


class PixArtLoader:
    DESCRIPTION = ("Loads any checkpoint of the PixArt family: alpha, delta (LCM), DMD, Sigma, 900M; official .pth, "
                   "diffusers or ComfyUI layout; PT-DiT too. The MODEL works with KSampler, LoRA loaders and other "
                   "stock nodes.")
    CATEGORY = "PixArt/loaders"
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL", "STRING")
    RETURN_NAMES = ("MODEL", "report")
    OUTPUT_TOOLTIPS = ("The diffusion model.", "What was found in the file, in one line.")
    SEARCH_ALIASES = ["pixart", "pixart sigma", "pixart alpha", "pixart delta", "lcm", "pt-dit", "qihoo-t2x",
                      "load diffusion model"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {
            "file": (folders.model_files(), {
                "tooltip": "Checkpoint in models/diffusion_models or models/checkpoints. pixart-mini/... comes with "
                           "the extension. Of a diffusers folder choose the transformer file, with config.json "
                           "beside it."}),
            "variant": (["auto", *VARIANTS], {"default": "auto", "tooltip":
                        "What the checkpoint was trained as. auto reads it from the weights where these can tell, else "
                        "from the file's name; choose it yourself when the report says it was guessed."}),
            "weight_dtype": (list(WEIGHT_DTYPES), {"default": "auto", "tooltip":
                             "How weights are kept. auto: as the host does it on a GPU; on a CPU bf16 where the "
                             "processor is faster with it (AMX), else fp32. fp8: half of bf16's memory, less exact. "
                             "Packed files (float8, int8, nvfp4): auto keeps them packed, all others unpack them; "
                             "fp4 files are always unpacked as they load."}),
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
        model = load_model(str(folders.model_path(file)), variant, weight_dtype)
        found = model.model.model_config
        show_text(f"{found.description}\ndecode with {vae_for(found.pixart)}")
        return model, found.description


class PixArtT5Loader:
    DESCRIPTION = ("Loads the T5-XXL text encoder of PixArt in 8, 4 or 16 bits. 8 bits: about 6 GB instead of 9.5, "
                   "with practically the same pictures. The CLIP works with the stock CLIP Text Encode too.")
    CATEGORY = "PixArt/loaders"
    FUNCTION = "load"
    RETURN_TYPES = ("CLIP",)
    RETURN_NAMES = ("CLIP",)
    OUTPUT_TOOLTIPS = ("The text encoder.",)
    SEARCH_ALIASES = ["t5", "t5xxl", "text encoder", "8-bit", "bitsandbytes", "load clip"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {
            "file": (folders.text_encoders(), {
                "tooltip": "T5 v1.1 XXL encoder in models/text_encoders: one file, or a Hugging Face folder with its "
                           "config.json. pixart-mini/t5 comes with the extension."}),
            "bits": (["8", "4", "16", "int8", "auto"], {"default": "8", "tooltip":
                     "8: LLM.int8, the paper's choice, about 6 GB. 4: NF4, about 4 GB, slightly different pictures. "
                     "16: bfloat16, 9.5 GB. int8: 5 GB without bitsandbytes, of which the host can keep a part out of "
                     "the GPU. auto: the best that the memory of the device holds; the node says which."}),
            "device": (["auto", "cpu"], {"default": "auto", "tooltip":
                       "auto: where the host runs text encoders, the GPU if it has room. cpu: keep the GPU for the "
                       "picture; a prompt then takes seconds instead of a moment."}),
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
