"""Nodes that sample few-step PixArt models."""
from typing import Any

from ..pixart.sampling.preset import PRESET_METHODS
from ..pixart.sampling.samplers import SAMPLERS
from .arguments import checked

SEED_INPUT = ("INT", {"default": 0, "min": 0, "max": 0xffffffffffffffff, "control_after_generate": True,
                      "tooltip": "Seed of the noise. The same seed gives the same image on the same machine."})
STEPS_INPUT = ("INT", {"default": SAMPLERS["lcm"].steps, "min": 1, "max": 8, "tooltip":
                       "Number of sampling steps. 4 is usual, 2 is nearly as good, 1 gives a rough sketch."})
RULE = (list(SAMPLERS["lcm"].rules), {"default": "official", "tooltip":
                      "Which timesteps are used: those of PixArt's own code (4 steps: 999, 759, 519, 279) or those "
                      "of diffusers (999, 759, 499, 259)."})
METHOD_INPUT = (["auto", *PRESET_METHODS], {"default": "auto", "tooltip":
                "How the model was trained. auto: read from the file, else from its name, else teacher (a base "
                "model)."})
DENOISE = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01, "tooltip":
                     "1: from pure noise. Below 1: image to image; lower values keep more of the input. 0 returns "
                     "the latent unchanged."})


class PixArtLCMSampler:
    DESCRIPTION = ("Samples PixArt-delta (LCM) and PixArt models with an LCM-LoRA in 1 to 8 steps, with live "
                   "preview, masks and image to image.")
    CATEGORY = "PixArt/sampling"
    FUNCTION = "sample"
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("For VAE Decode.",)
    SEARCH_ALIASES = ["lcm", "ksampler", "few steps", "delta", "turbo"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {
            "model": ("MODEL", {"tooltip": "A PixArt LCM checkpoint, or a PixArt model with an LCM-LoRA."}),
            "positive": ("CONDITIONING", {"tooltip": "The prompt."}),
            "latent": ("LATENT", {"tooltip": "An empty latent, or an encoded image with denoise below 1."}),
            "seed": SEED_INPUT, "steps": STEPS_INPUT, "rule": RULE, "denoise": DENOISE,
        }, "optional": {
            "negative": ("CONDITIONING", {"tooltip": "Only used when cfg is not 1."}),
            "cfg": ("FLOAT", {"default": 1.0, "min": 1.0, "max": 5.0, "step": 0.1, "round": 0.01, "tooltip":
                              "Keep at 1: guidance is built into few-step models. Slightly more, such as 1.3, "
                              "sharpens the image but doubles the time and needs a negative prompt."}),
        }}

    @checked
    def sample(self, model: Any, positive: list, latent: dict, seed: int, steps: int, rule: str, denoise: float,
               negative: list | None = None, cfg: float = 1.0) -> tuple[dict]:
        from .host.sampling import run_lcm
        return (run_lcm(model, positive, negative, latent, seed, steps, rule, denoise, cfg),)


class PixArtLCMSigmas:
    DESCRIPTION = ("PixArt's LCM sampling for the stock SamplerCustom nodes: the model with consistency prediction, "
                   "the sampler and the sigmas. Use all three together.")
    CATEGORY = "PixArt/sampling"
    FUNCTION = "make"
    RETURN_TYPES = ("MODEL", "SAMPLER", "SIGMAS")
    RETURN_NAMES = ("MODEL", "SAMPLER", "SIGMAS")
    OUTPUT_TOOLTIPS = ("The model with LCM prediction.", "The LCM sampler.", "The noise levels of the steps.")
    SEARCH_ALIASES = ["lcm", "sigmas", "scheduler", "custom sampling"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {
            "model": ("MODEL", {"tooltip": "A PixArt LCM checkpoint, or a PixArt model with an LCM-LoRA."}),
            "steps": STEPS_INPUT, "rule": RULE, "denoise": DENOISE,
        }}

    @checked
    def make(self, model: Any, steps: int, rule: str, denoise: float) -> tuple[Any, Any, Any]:
        from .host.sampling import lcm_sampler, lcm_schedule
        patched, sigmas = lcm_schedule(model, steps, rule, denoise)
        return patched, lcm_sampler(), sigmas


class PixArtDMDSampler:
    DESCRIPTION = ("Makes an image in a single pass with PixArt-alpha DMD (512 px). Only for DMD checkpoints: other "
                   "models give blurry images.")
    CATEGORY = "PixArt/sampling"
    FUNCTION = "sample"
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("For VAE Decode.",)
    SEARCH_ALIASES = ["dmd", "one step", "single step", "turbo"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {
            "model": ("MODEL", {"tooltip": "PixArt-Alpha-DMD-XL-2-512x512; set the loader's variant to alpha-512."}),
            "positive": ("CONDITIONING", {"tooltip": "The prompt. There is no negative prompt in one step."}),
            "latent": ("LATENT", {"tooltip": "An empty latent; it sets the size and number of images."}),
            "seed": SEED_INPUT,
        }}

    @checked
    def sample(self, model: Any, positive: list, latent: dict, seed: int) -> tuple[dict]:
        from .host.sampling import run_dmd
        return (run_dmd(model, positive, latent, seed),)


class PixArtSteps:
    DESCRIPTION = ("Chooses sampler, steps and cfg to match a PixArt model: base model, LCM, LCM-LoRA, TDM or DMD. "
                   "Reads them from the model file or its name, unless you choose. For the stock SamplerCustom.")
    CATEGORY = "PixArt/sampling"
    FUNCTION = "make"
    RETURN_TYPES = ("MODEL", "SAMPLER", "SIGMAS", "INT", "FLOAT", "STRING")
    RETURN_NAMES = ("MODEL", "SAMPLER", "SIGMAS", "steps", "cfg", "report")
    OUTPUT_TOOLTIPS = ("The model with the prediction type of its method. Use it with the other outputs.",
                       "The sampler.", "The noise levels of the steps.", "Number of steps.",
                       "Guidance scale: connect it to cfg.", "What was chosen and why, in one line.")
    SEARCH_ALIASES = ["few steps", "tdm", "dmd", "lcm", "sigmas", "scheduler", "turbo", "auto sampler"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {
            "model": ("MODEL", {"tooltip": "A PixArt model, with its few-step LoRA if it has one."}),
            "method": METHOD_INPUT,
            "steps": ("INT", {"default": 0, "min": 0, "max": 200, "tooltip":
                      "0: the usual number (teacher 20, LCM and TDM 4, DMD 1)."}),
            "cfg": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 30.0, "step": 0.1, "round": 0.01, "tooltip":
                    "0: the usual scale (teacher 4.5, PixArt-mini 2.5; few-step models 1, because guidance is built "
                    "in)."}),
            "denoise": DENOISE,
        }}

    @checked
    def make(self, model: Any, method: str, steps: int, cfg: float,
             denoise: float) -> tuple[Any, Any, Any, int, float, str]:
        from .host.node_text import show_text
        from .host.steps import make_parts
        parts = make_parts(model, method, steps, cfg, denoise)
        show_text(parts.preset.line)
        return (parts.model, parts.sampler, parts.sigmas, parts.preset.steps, parts.preset.guidance,
                parts.preset.line)
