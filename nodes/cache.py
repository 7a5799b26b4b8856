"""The node that reuses work from step to step."""
from typing import Any

from ..pixart.accelerate.titles import CACHE_TITLES
from .arguments import checked
from .host import folders

DEFAULT_METHOD = "steps"
NO_FILE = "none"
HOW = "; ".join(f"{name}: {title}" for name, title in CACHE_TITLES.items())


class PixArtCache:
    DESCRIPTION = ("Makes any sampler faster by reusing work from step to step. The wanted speed is turned into a "
                   "setting when sampling begins, so the time is known beforehand; the node says what it did.")
    CATEGORY = "PixArt/model"
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The model with the cache on it, for any sampler.",)
    SEARCH_ALIASES = ["cache", "speed up", "faster", "ecad", "fora", "delta-dit", "t-gate", "first block cache",
                      "teacache", "easycache", "taylorseer"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        share = {"min": 0.0, "max": 1.0, "step": 0.01}
        return {"required": {
            "model": ("MODEL", {"tooltip": "A PixArt model of Load PixArt, LoRAs and all."}),
            "method": (list(CACHE_TITLES), {"default": DEFAULT_METHOD, "tooltip": HOW}),
            "budget": ("FLOAT", {"default": 1.5, "min": 1.0, "max": 10.0, "step": 0.1, "round": 0.01, "tooltip":
                                 "How many times less work: 2 is half of it, 1 switches the cache off. The setting "
                                 "that comes nearest is taken and said. Not used with a schedule file."}),
            "start": ("FLOAT", {"default": 0.0, **share, "tooltip":
                                "Reuse only from this share of the steps on. Later keeps the composition."}),
            "end": ("FLOAT", {"default": 1.0, **share, "tooltip": "Reuse only up to this share of the steps."}),
        }, "optional": {
            "schedule": ([NO_FILE, *folders.schedule_files()], {"default": NO_FILE, "tooltip":
                         "A JSON schedule of ECAD in models/pixart_schedules, for the method ecad: for its number of "
                         "steps and a model of its depth (the published ones: 20 steps, 28 blocks)."}),
            "vae": ("VAE", {"tooltip": "Connect to compare: everything is sampled a second time without reuse, and the "
                            "node says both times and the PSNR of the pictures. Disconnect afterwards."}),
            "pooled_blocks": ("INT", {"default": 0, "min": 0, "max": 64, "tooltip":
                              "Self-attention of the first blocks as the mean of their values, FlexDiT's part that "
                              "needs no training: 2 changes a picture little and saves a little. 0: none."}),
        }}

    @classmethod
    def VALIDATE_INPUTS(cls, schedule: str | None = None) -> bool | str:
        return True if schedule == NO_FILE else folders.is_there(schedule, folders.schedule_path)

    @classmethod
    def IS_CHANGED(cls, schedule: str | None = None, **_: object) -> str:
        return "" if schedule == NO_FILE else folders.changed(schedule, folders.schedule_path)

    @checked
    def apply(self, model: Any, method: str, budget: float, start: float, end: float, schedule: str = NO_FILE,
              vae: Any = None, pooled_blocks: int = 0) -> tuple[Any]:
        from ..pixart.accelerate.choice import CacheChoice
        from .host.cache import with_cache
        file = None if schedule == NO_FILE else folders.schedule_path(schedule)
        return (with_cache(model, CacheChoice(method, budget, file, start, end), vae, pooled_blocks),)
