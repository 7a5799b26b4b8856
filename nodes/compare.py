"""The node that generates one image for each pair of settings and puts them on a labelled sheet."""
from typing import Any

from .arguments import checked
from .host import folders
from .sampling import DENOISE, METHOD_INPUT, SEED_INPUT

VARIED_INPUTS = ["prompt", "seed", "steps", "cfg", "method", "denoise"]
VALUES = ("{} Prompts: one per line. Others: separated by commas, such as 1, 2, 4; integers also as a range, 1..4. "
          "At most 256 images.")


class PixArtCompare:
    DESCRIPTION = ("Makes an image for every combination of two lists (steps and cfg, seeds and prompts, ...) in one "
                   "run and arranges them in a labelled grid. Finished images are kept: after an interruption, or "
                   "with more values, only the missing ones are made.")
    CATEGORY = "PixArt/sampling"
    FUNCTION = "compare"
    RETURN_TYPES = ("IMAGE", "IMAGE", "STRING")
    RETURN_NAMES = ("sheet", "images", "report")
    OUTPUT_TOOLTIPS = ("The labelled grid, for Save Image.", "The images alone, row by row.",
                       "How many images were made, how many existed already, and the folder.")
    SEARCH_ALIASES = ["xy plot", "grid", "contact sheet", "comparison", "matrix", "sweep", "parameter study"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        text = {"multiline": True, "dynamicPrompts": False}
        return {"required": {
            "model": ("MODEL", {"tooltip": "A PixArt model, with its LoRAs."}),
            "clip": ("CLIP", {"tooltip": "The T5 text encoder."}),
            "vae": ("VAE", {"tooltip": "The VAE that belongs to the model."}),
            "latent": ("LATENT", {"tooltip": "One empty latent, which sets the size; or an encoded image with "
                                             "denoise below 1."}),
            "prompt": ("STRING", {**text, "default": "", "tooltip":
                                  "For all images, unless prompts are compared."}),
            "columns": (VARIED_INPUTS, {"default": "steps", "tooltip": "The setting that varies across columns."}),
            "column_values": ("STRING", {**text, "default": "1, 2, 4", "tooltip": VALUES.format("Its values.")}),
            "rows": (["none", *VARIED_INPUTS], {"default": "seed", "tooltip":
                                         "The setting that varies across rows. none: a single row."}),
            "row_values": ("STRING", {**text, "default": "1..3", "tooltip": VALUES.format("Its values.")}),
            "name": ("STRING", {"default": "compare", "tooltip":
                     "Folder in output/pixart-compare where the images are kept. Delete it to start over."}),
            "seed": SEED_INPUT,
            "method": METHOD_INPUT,
            "steps": ("INT", {"default": 0, "min": 0, "max": 200, "tooltip":
                      "For all images, unless steps are compared. 0: the default of the method."}),
            "cfg": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 30.0, "step": 0.1, "round": 0.01, "tooltip":
                    "For all images, unless cfg is compared. 0: the default of the method; few-step models use 1."}),
            "denoise": DENOISE,
            "negative": ("STRING", {**text, "default": "", "tooltip": "What to avoid; used when cfg is not 1."}),
        }, "hidden": {"graph": "PROMPT", "node": "UNIQUE_ID"}}

    @classmethod
    def IS_CHANGED(cls, name: str | None = None, **_: object) -> float | str:
        from .host.compare import folder_of
        return folders.deleted(name, folder_of)

    @checked
    def compare(self, model: Any, clip: Any, vae: Any, latent: dict, prompt: str, columns: str, column_values: str,
                rows: str, row_values: str, name: str, seed: int, method: str, steps: int, cfg: float, denoise: float,
                negative: str, graph: Any = None, node: str | None = None) -> tuple[Any, Any, str]:
        from ..pixart.compare import Cell, read_axis
        from .host.compare import CellNetworks, compare
        cell = Cell(prompt, negative, seed, method, steps, cfg, denoise)
        return compare(CellNetworks(model, clip, vae, latent), cell, read_axis(columns, column_values),
                       read_axis(rows, row_values), name.strip(), graph, node)
