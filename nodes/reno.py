"""The node that optimises the noise of an image by rewards."""
from typing import Any

from ..pixart.reward.table import REWARDS
from ..pixart.sampling.samplers import FEW_STEP_RULES, FEW_STEP_SAMPLERS
from .arguments import checked
from .sampling import SEED_INPUT


def weight(name: str, tooltip: str, default: float = 0.0) -> tuple:
    published = "" if name == "judge" else f" {REWARDS[name].weight:g} as published; 0 leaves it out."
    return ("FLOAT", {"default": default, "min": -100.0, "max": 100.0, "step": 0.01, "round": 0.0001,
                      "tooltip": tooltip + published})


class PixArtReNO:
    DESCRIPTION = ("Optimises the initial noise for a one- or few-step model (ReNO): generates an image, scores it "
                   "with reward models, follows the gradient to better noise, repeats, and keeps the best. Rewards: "
                   "CLIP, PickScore, HPSv2 and ImageReward from models/rewards; PixArt-mini includes its own.")
    CATEGORY = "PixArt/sampling"
    FUNCTION = "optimise"
    RETURN_TYPES = ("IMAGE", "NOISE", "LATENT", "STRING", "IMAGE")
    RETURN_NAMES = ("image", "NOISE", "noise", "log", "curve")
    OUTPUT_TOOLTIPS = ("The best image.",
                       "Its noise, for SamplerCustomAdvanced with the model, sampler and steps of PixArt LCM Schedule.",
                       "The same noise as a latent, for samplers that add none themselves: SamplerCustom with PixArt "
                       "Steps, or for lcm KSampler Advanced with add_noise disabled.",
                       "The scores of each iteration.", "A plot of the rewards.")
    SEARCH_ALIASES = ["reno", "reward", "noise optimization", "best of n", "hpsv2", "pickscore", "imagereward"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {
            "model": ("MODEL", {"tooltip": "A few-step PixArt model from Load PixArt: LCM, TDM or DMD, or one "
                                           "with such a LoRA."}),
            "positive": ("CONDITIONING", {"tooltip": "The prompt, from PixArt Text Encode."}),
            "vae": ("VAE", {"tooltip": "The VAE of the model."}),
            "latent": ("LATENT", {"tooltip": "An empty latent; sets the size and number of images. Each is optimised "
                                             "separately."}),
            "prompt": ("STRING", {"multiline": True, "tooltip":
                       "The text that the rewards compare the image with: the same as in PixArt Text Encode."}),
            "seed": SEED_INPUT,
            "sampler": (list(FEW_STEP_SAMPLERS), {"default": "lcm", "tooltip":
                        "lcm for LCM models, tdm for TDM models, dmd for one-step DMD models."}),
            "steps": ("INT", {"default": 4, "min": 1, "max": 8, "tooltip":
                      "Number of sampling steps; the gradient passes through all of them. dmd: 1."}),
            "rule": (list(FEW_STEP_RULES), {"default": "official", "tooltip":
                     "Which timesteps are used. lcm: official or diffusers; tdm: official or tdm-800; dmd: no "
                     "effect."}),
            "iterations": ("INT", {"default": 50, "min": 1, "max": 1000, "tooltip":
                           "Number of images generated and scored. 50 as published; each takes about as long as "
                           "three images."}),
            "rate": ("FLOAT", {"default": 5.0, "min": 0.0, "max": 1000.0, "step": 0.1, "round": 0.0001, "tooltip":
                     "Learning rate: how far the noise moves per iteration; 5 as published."}),
            "clip": ("FLOAT", {"default": 0.1, "min": 0.0001, "max": 1000.0, "step": 0.01, "round": 0.0001, "tooltip":
                     "Maximum gradient norm; 0.1 as published."}),
            "regularisation": ("FLOAT", {"default": 0.01, "min": 0.0, "max": 10.0, "step": 0.001, "round": 0.00001,
                               "tooltip": "Keeps the norm of the noise close to that of Gaussian noise; 0.01 as "
                                          "published."}),
            "judge": weight("judge", "Weight of PixArt-mini's judge, which only understands PixArt-mini's prompts; "
                                     "set it to 0 for all other models.", 1.0),
            "clip_score": weight("clip", "Weight of CLIP ViT-H/14 (models/rewards/clip)."),
            "pickscore": weight("pickscore", "Weight of PickScore (models/rewards/pickscore)."),
            "hpsv2": weight("hpsv2", "Weight of HPSv2.1 (models/rewards/HPS_v2.1_compressed.pt)."),
            "imagereward": weight("imagereward", "Weight of ImageReward (models/rewards/imagereward)."),
            "save_memory": ("BOOLEAN", {"default": True, "tooltip":
                            "Recompute activations instead of storing them: a third slower, much less memory."}),
        }}

    @classmethod
    def VALIDATE_INPUTS(cls, clip_score: float | None = None, pickscore: float | None = None,
                        hpsv2: float | None = None, imagereward: float | None = None) -> bool | str:
        """Missing rewards are named before anything runs; numbers are checked by the method."""
        from .host.reno import missing_reward
        return missing_reward({"clip": clip_score, "pickscore": pickscore, "hpsv2": hpsv2, "imagereward": imagereward})

    @checked
    def optimise(self, model: Any, positive: list, vae: Any, latent: dict, prompt: str, seed: int, sampler: str,
                 steps: int, rule: str, iterations: int, rate: float, clip: float, regularisation: float, judge: float,
                 clip_score: float, pickscore: float, hpsv2: float, imagereward: float, save_memory: bool) -> tuple:
        from ..pixart.reward.optimise import NoiseRecipe
        from .host.reno import RenoWish, run_reno
        weights = {"judge": judge, "clip": clip_score, "pickscore": pickscore, "hpsv2": hpsv2,
                   "imagereward": imagereward}
        recipe = NoiseRecipe(iterations, rate, clip=clip, regularisation=regularisation)
        wish = RenoWish(prompt, seed, sampler, 1 if sampler == "dmd" else steps, rule, weights, recipe, save_memory)
        return run_reno(model, positive, vae, latent, wish)
