"""The node that reuses work from step to step."""
from typing import Any

from ..pixart.accelerate.titles import CACHE_TITLES
from .arguments import checked
from .host import folders

DEFAULT_METHOD = "steps"
NO_FILE = "none"
HOW = "; ".join(f"{name}: {title}" for name, title in CACHE_TITLES.items())


class PixArtCache:
    DESCRIPTION = ("Makes any sampler faster by reusing results of earlier steps. The requested speed-up is "
                   "converted into a setting before sampling starts, so the time is known in advance; the node "
                   "reports what it did.")
    CATEGORY = "PixArt/model"
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The model with the cache, for any sampler.",)
    SEARCH_ALIASES = ["cache", "speed up", "faster", "ecad", "fora", "delta-dit", "t-gate", "first block cache",
                      "teacache", "easycache", "taylorseer"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        share = {"min": 0.0, "max": 1.0, "step": 0.01}
        return {"required": {
            "model": ("MODEL", {"tooltip": "A PixArt model from Load PixArt, with its LoRAs."}),
            "method": (list(CACHE_TITLES), {"default": DEFAULT_METHOD, "tooltip": HOW}),
            "budget": ("FLOAT", {"default": 1.5, "min": 1.0, "max": 10.0, "step": 0.1, "round": 0.01, "tooltip":
                                 "By how much the work is reduced: 2 halves it, 1 switches the cache off. The "
                                 "nearest possible setting is used and shown on the node. Ignored with a schedule "
                                 "file."}),
            "start": ("FLOAT", {"default": 0.0, **share, "tooltip":
                                "Fraction of the steps after which reuse begins. A later start preserves the "
                                "composition."}),
            "end": ("FLOAT", {"default": 1.0, **share, "tooltip": "Fraction of the steps after which reuse ends."}),
        }, "optional": {
            "schedule": ([NO_FILE, *folders.schedule_files()], {"default": NO_FILE, "tooltip":
                         "An ECAD schedule (JSON) in models/pixart_schedules, for method ecad. It fits one number of "
                         "steps and one model depth (the published ones: 20 steps, 28 blocks)."}),
            "vae": ("VAE", {"tooltip": "Connect to compare: the image is sampled a second time without reuse, and "
                                       "the node shows both times and the PSNR between the images. Disconnect "
                                       "afterwards."}),
            "pooled_blocks": ("INT", {"default": 0, "min": 0, "max": 64, "tooltip":
                              "Replaces self-attention in the first blocks by the mean of its values (the part of "
                              "FlexDiT that needs no training). 2 changes an image little and saves a little. "
                              "0: off."}),
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
