"""The node that trains a LoRA, an LCM-LoRA or a ControlNet."""
from pathlib import Path
from typing import Any

from ..pixart.resolution import ASPECT_RATIOS
from .arguments import checked

NODE_METHODS = ["lora", "lcm-lora", "controlnet"]
FILE_NAME = "my-pixart-lora"


class PixArtTrain:
    DESCRIPTION = ("Trains on your own images: a LoRA for a subject or style, an LCM-LoRA that makes a model work in "
                   "4 steps, or a ControlNet that follows edges. If interrupted, it keeps its progress, and the same "
                   "node continues from there. Needs the Python packages accelerate and peft.")
    CATEGORY = "PixArt/training"
    FUNCTION = "train"
    RETURN_TYPES = ("MODEL", "CONTROL_NET", "IMAGE", "STRING")
    RETURN_NAMES = ("MODEL", "CONTROL_NET", "preview", "file")
    OUTPUT_TOOLTIPS = ("The model with the new LoRA; unchanged for controlnet.",
                       "The new ControlNet; only for that method.",
                       "The last preview; only with a preview_prompt.", "Path of the trained weights.")
    OUTPUT_NODE = True
    SEARCH_ALIASES = ["train lora", "fine-tune", "finetune", "distill", "lcm-lora", "train controlnet", "dreambooth"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {
            "model": ("MODEL", {"tooltip": "From Load PixArt: a base model; for lora also an LCM model."}),
            "method": (NODE_METHODS, {"default": "lora", "tooltip":
                       "lora: learn a subject or style. lcm-lora: work in few steps. controlnet: follow edges; needs "
                       "thousands of images."}),
            "name": ("STRING", {"default": FILE_NAME, "tooltip":
                     "File name in models/loras (models/controlnet). The same name continues an interrupted "
                     "training; a file from another training is never overwritten."}),
            "steps": ("INT", {"default": 500, "min": 1, "max": 1_000_000, "tooltip":
                      "Training steps. lora: 300 to 2000. lcm-lora: 1000 to 5000. controlnet: 2000 or more. Raise it "
                      "to train longer."}),
            "batch": ("INT", {"default": 1, "min": 1, "max": 512, "tooltip":
                      "Images per step. More is steadier and needs more memory. lcm-lora: 8 to 16."}),
            "learning_rate": ("FLOAT", {"default": 1e-4, "min": 1e-7, "max": 1.0, "step": 1e-6, "round": False,
                                        "tooltip": "lora: 0.0001. lcm-lora, controlnet: 0.00002 to 0.0001. "
                                                   "PixArt-mini: 0.001."}),
            "rank": ("INT", {"default": 16, "min": 1, "max": 512, "tooltip":
                     "Rank of the LoRA: 4 to 16 for a subject, 32 to 64 for a style or lcm-lora."}),
            "blocks": ("INT", {"default": 13, "min": 1, "max": 100, "tooltip":
                       "controlnet: number of blocks copied from the model, at most one fewer than it has; 13 in the "
                       "published ones."}),
            "guidance": ("FLOAT", {"default": 4.5, "min": 0.0, "max": 20.0, "step": 0.1, "round": 0.01, "tooltip":
                         "lcm-lora: the guidance that is built in, one less than a sampler's cfg: 4.5 equals cfg "
                         "5.5. PixArt-mini: 1.5."}),
            "edges": (["canny", "soft", "hed"], {"default": "canny", "tooltip":
                      "controlnet: type of edges. hed needs ControlNetHED.pth, like PixArt HED."}),
            "resolution": (["auto", *map(str, ASPECT_RATIOS)], {"default": "auto", "tooltip":
                           "Side of a square image in pixels; other images are resized to the nearest trained shape. "
                           "auto: the model's training resolution. Lower values need less memory."}),
            "save_memory": ("BOOLEAN", {"default": True, "tooltip":
                            "Recompute activations instead of storing them: a third slower, much less memory."}),
            "start_seed": ("INT", {"default": 0, "min": 0, "max": 2 ** 32, "tooltip":
                           "Seed of the initial weights, the order of the images and the noise."}),
            "preview_prompt": ("STRING", {"default": "", "multiline": True, "tooltip":
                               "Prompt for preview images during training. Empty: no previews."}),
            "preview_every": ("INT", {"default": 100, "min": 1, "max": 1_000_000, "tooltip":
                              "Steps between previews."}),
        }, "optional": {
            "images": ("IMAGE", {"tooltip": "Training images, if not from a folder."}),
            "clip": ("CLIP", {"tooltip": "The text encoder of the model. Not needed for a prepared folder."}),
            "vae": ("VAE", {"tooltip": "The VAE of the model. Not needed for a prepared folder."}),
            "captions": ("STRING", {"default": "", "multiline": True, "tooltip":
                         "Captions of the images: one line for all, or one line each."}),
            "folder": ("STRING", {"default": "", "tooltip":
                       "Instead of images: a folder of images with captions in .txt files of the same name, or one "
                       "made by `python -m pixart prepare`."}),
        }}

    @classmethod
    def IS_CHANGED(cls, folder: str | None = "", **_: object) -> str:
        path = Path(folder or "").expanduser()
        if not folder or not path.is_dir():         # a linked folder arrives as None
            return ""
        from ..pixart.prepare.folder import files_below
        stamps = ((file, file.stat()) for file in files_below(path) if file.exists())
        return ";".join(f"{file.relative_to(path)}:{stat.st_mtime_ns}:{stat.st_size}" for file, stat in stamps)

    @classmethod
    def VALIDATE_INPUTS(cls, method: str | None = None) -> bool | str:
        if method is None:                          # linked: checked when the training starts
            return True
        if method not in NODE_METHODS:
            return f"method is {method}; use {', '.join(NODE_METHODS)}"
        from .host.training.packages import missing_packages
        missing = missing_packages(method)
        return f"training needs: pip install {' '.join(missing)}" if missing else True

    @checked
    def train(self, model: Any, method: str, name: str, steps: int, batch: int, learning_rate: float, rank: int,
              blocks: int, guidance: float, edges: str, resolution: str, save_memory: bool, start_seed: int,
              preview_prompt: str, preview_every: int, images: Any = None, clip: Any = None, vae: Any = None,
              captions: str = "", folder: str = "") -> dict:
        from .host.training.data import TrainingImages
        from .host.training.session import result_of, train_on
        from .host.training.wish import TrainingWish
        wish = TrainingWish(method, name.strip(), steps, batch, learning_rate, rank, blocks, guidance, edges,
                            resolution, save_memory, start_seed, preview_prompt, preview_every)
        return result_of(model, wish, train_on(model, wish, TrainingImages(images, captions, folder.strip()), clip,
                                               vae))
