"""The node that trains a LoRA, an LCM-LoRA or a ControlNet."""
from pathlib import Path
from typing import Any

from ..pixart.resolution import ASPECT_RATIOS
from .arguments import checked

NODE_METHODS = ["lora", "lcm-lora", "controlnet"]
FILE_NAME = "my-pixart-lora"


class PixArtTrain:
    DESCRIPTION = ("Trains on your own pictures: a LoRA that learns what they show, an LCM-LoRA that makes a model "
                   "draw in 4 steps, or a ControlNet that follows edges. Interrupted, it keeps what it has learned, "
                   "and the same node goes on from there. Needs the Python packages accelerate and peft.")
    CATEGORY = "PixArt/training"
    FUNCTION = "train"
    RETURN_TYPES = ("MODEL", "CONTROL_NET", "IMAGE", "STRING")
    RETURN_NAMES = ("MODEL", "CONTROL_NET", "preview", "file")
    OUTPUT_TOOLTIPS = ("The model with the new LoRA; as it came in for a ControlNet.",
                       "The new ControlNet; only there for that method.",
                       "The last preview; only there with a preview_prompt.", "Where the trained weights lie.")
    OUTPUT_NODE = True
    SEARCH_ALIASES = ["train lora", "fine-tune", "finetune", "distill", "lcm-lora", "train controlnet", "dreambooth"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {
            "model": ("MODEL", {"tooltip": "From Load PixArt: a base model; for lora an LCM one too."}),
            "method": (NODE_METHODS, {"default": "lora", "tooltip":
                       "lora: learn a subject or style. lcm-lora: draw in few steps. controlnet: follow edges; takes "
                       "thousands of pictures."}),
            "name": ("STRING", {"default": FILE_NAME, "tooltip":
                     "File name in models/loras (models/controlnet). The same name goes on with an interrupted "
                     "training; a finished file of another one is never replaced."}),
            "steps": ("INT", {"default": 500, "min": 1, "max": 1_000_000, "tooltip":
                      "Updates of the weights. lora: 300 to 2000. lcm-lora: 1000 to 5000. controlnet: 2000 and more. "
                      "May be raised to train on."}),
            "batch": ("INT", {"default": 1, "min": 1, "max": 512, "tooltip":
                      "Pictures a step. More is steadier and takes more memory. lcm-lora: 8 to 16."}),
            "learning_rate": ("FLOAT", {"default": 1e-4, "min": 1e-7, "max": 1.0, "step": 1e-6, "round": False,
                                        "tooltip": "lora: 0.0001. lcm-lora, controlnet: 0.00002 to 0.0001. "
                                                   "PixArt-mini: 0.001."}),
            "rank": ("INT", {"default": 16, "min": 1, "max": 512, "tooltip":
                     "Size of a LoRA: 4 to 16 for a subject, 32 to 64 for a style or lcm-lora."}),
            "blocks": ("INT", {"default": 13, "min": 1, "max": 100, "tooltip":
                       "ControlNet: how many of the model's blocks are copied, at most one less than it has; 13 in the "
                       "published ones."}),
            "guidance": ("FLOAT", {"default": 4.5, "min": 0.0, "max": 20.0, "step": 0.1, "round": 0.01, "tooltip":
                         "lcm-lora: the guidance built in, one less than the cfg of a sampler: 4.5 is cfg 5.5. "
                         "PixArt-mini: 1.5."}),
            "edges": (["canny", "soft", "hed"], {"default": "canny", "tooltip":
                      "controlnet: the edges to follow. hed needs ControlNetHED.pth, as PixArt HED does."}),
            "resolution": (["auto", *map(str, ASPECT_RATIOS)], {"default": "auto", "tooltip":
                           "Side of a square picture in pixels; pictures of other shapes go to the trained shape "
                           "nearest to theirs. auto: what the model was trained on. Lower takes less memory."}),
            "save_memory": ("BOOLEAN", {"default": True, "tooltip":
                            "Compute activations twice instead of keeping them: a third slower, far less memory."}),
            "start_seed": ("INT", {"default": 0, "min": 0, "max": 2 ** 32, "tooltip":
                           "Chooses starting weights, order of the pictures and noise."}),
            "preview_prompt": ("STRING", {"default": "", "multiline": True, "tooltip":
                               "Drawn now and then with what was learned so far. Empty: no previews."}),
            "preview_every": ("INT", {"default": 100, "min": 1, "max": 1_000_000, "tooltip":
                              "Steps between previews."}),
        }, "optional": {
            "images": ("IMAGE", {"tooltip": "Pictures to learn from, if not from a folder."}),
            "clip": ("CLIP", {"tooltip": "The text encoder of the model. Not needed for a prepared folder."}),
            "vae": ("VAE", {"tooltip": "The VAE of the model. Not needed for a prepared folder."}),
            "captions": ("STRING", {"default": "", "multiline": True, "tooltip":
                         "What the images show: one line for all, or one line each."}),
            "folder": ("STRING", {"default": "", "tooltip":
                       "Instead of images: a folder of pictures with captions in .txt files beside them, or one made "
                       "by `python -m pixart prepare`."}),
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
        if method is None:                          # linked: the training itself looks
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
        from .host.training.data import TrainingPictures
        from .host.training.session import result_of, train_on
        from .host.training.wish import TrainingWish
        wish = TrainingWish(method, name.strip(), steps, batch, learning_rate, rank, blocks, guidance, edges,
                            resolution, save_memory, start_seed, preview_prompt, preview_every)
        return result_of(model, wish, train_on(model, wish, TrainingPictures(images, captions, folder.strip()), clip,
                                               vae))
