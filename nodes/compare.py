"""The node that draws one picture for each pair of settings and puts them on a labelled sheet."""
from typing import Any

from .arguments import checked
from .sampling import DENOISE, METHOD_INPUT, SEED_INPUT

VARIED_INPUTS = ["prompt", "seed", "steps", "cfg", "method", "denoise"]
VALUES = ("{} Prompts: one a line. Other values: with commas between them, such as 1, 2, 4; whole numbers also as "
          "ranges, 1..4. At most 256 pictures.")


class PixArtCompare:
    DESCRIPTION = ("Draws every pair of two lists (steps and cfg, seeds and prompts, ...) in one run and puts the "
                   "pictures on a labelled sheet. What is drawn is kept: after an interruption, or with more values, "
                   "only what is missing is drawn.")
    CATEGORY = "PixArt/sampling"
    FUNCTION = "compare"
    RETURN_TYPES = ("IMAGE", "IMAGE", "STRING")
    RETURN_NAMES = ("sheet", "pictures", "report")
    OUTPUT_TOOLTIPS = ("All pictures with their labels, for Save Image.", "The pictures alone, row by row.",
                       "How many were drawn, how many were there, and the folder.")
    SEARCH_ALIASES = ["xy plot", "grid", "contact sheet", "comparison", "matrix", "sweep", "parameter study"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        text = {"multiline": True, "dynamicPrompts": False}
        return {"required": {
            "model": ("MODEL", {"tooltip": "A PixArt model, with its LoRAs."}),
            "clip": ("CLIP", {"tooltip": "The T5 text encoder."}),
            "vae": ("VAE", {"tooltip": "The VAE of this model."}),
            "latent": ("LATENT", {"tooltip": "One empty latent, which gives the size; or an encoded picture with "
                                             "denoise below 1."}),
            "prompt": ("STRING", {**text, "default": "", "tooltip":
                                  "Of all pictures, unless prompts are compared."}),
            "columns": (VARIED_INPUTS, {"default": "steps", "tooltip": "What differs from column to column."}),
            "column_values": ("STRING", {**text, "default": "1, 2, 4", "tooltip": VALUES.format("Its values.")}),
            "rows": (["none", *VARIED_INPUTS], {"default": "seed", "tooltip":
                                         "What differs from row to row. none: a single row."}),
            "row_values": ("STRING", {**text, "default": "1..3", "tooltip": VALUES.format("Its values.")}),
            "name": ("STRING", {"default": "compare", "tooltip":
                     "Folder in output/pixart-compare where the pictures are kept. Delete it to draw all anew."}),
            "seed": SEED_INPUT,
            "method": METHOD_INPUT,
            "steps": ("INT", {"default": 0, "min": 0, "max": 200, "tooltip":
                      "Of all pictures, unless steps are compared. 0: the method's own."}),
            "cfg": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 30.0, "step": 0.1, "round": 0.01, "tooltip":
                    "Of all pictures, unless cfg is compared. 0: the method's own; few-step models have 1."}),
            "denoise": DENOISE,
            "negative": ("STRING", {**text, "default": "", "tooltip": "Where cfg is not 1: what to avoid."}),
        }, "hidden": {"graph": "PROMPT", "node": "UNIQUE_ID"}}

    @checked
    def compare(self, model: Any, clip: Any, vae: Any, latent: dict, prompt: str, columns: str, column_values: str,
                rows: str, row_values: str, name: str, seed: int, method: str, steps: int, cfg: float, denoise: float,
                negative: str, graph: Any = None, node: str | None = None) -> tuple[Any, Any, str]:
        from ..pixart.compare import Cell, read_axis
        from .host.compare import CellNetworks, compare
        cell = Cell(prompt, negative, seed, method, steps, cfg, denoise)
        return compare(CellNetworks(model, clip, vae, latent), cell, read_axis(columns, column_values),
                       read_axis(rows, row_values), name.strip(), graph, node)
