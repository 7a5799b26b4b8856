"""Nodes that turn an image into the edge map a ControlNet follows."""
from typing import Any

from ..pixart.control.edges import EDGE_METHODS
from .arguments import checked
from .host import folders

SIZE = ("{} of the final image in pixels, 0 to {}. Edges are found at this size, as in training: connect {} of PixArt "
        "Empty Latent. 0: that of the input, or derived from the other side and the aspect ratio. Never stretched; if "
        "both sides are given, the excess is cropped evenly.")
SIDE_MAX = 16384


def size_inputs() -> dict[str, tuple]:
    return {name: ("INT", {"default": 0, "min": 0, "max": SIDE_MAX, "step": 8, "tooltip":
                           SIZE.format(name.capitalize(), SIDE_MAX, name)}) for name in ("width", "height")}


class PixArtEdges:
    DESCRIPTION = ("Makes an edge map, white on black, for Apply PixArt ControlNet: thin lines (canny), soft lines, "
                   "or a drawing used as it is. Needs no weights. PixArt-delta's ControlNet was trained on HED "
                   "edges: for photographs, use PixArt HED with it.")
    CATEGORY = "PixArt/controlnet"
    FUNCTION = "find"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("edges",)
    OUTPUT_TOOLTIPS = ("White edges on black, one map per image.",)
    SEARCH_ALIASES = ["canny", "edge detection", "sobel", "soft edge", "lineart", "scribble", "preprocessor",
                      "controlnet"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {
            "image": ("IMAGE", {"tooltip": "Images of any size. Transparent areas count as mid-grey for canny and "
                                           "soft, as background for none and invert."}),
            "method": (list(EDGE_METHODS), {"default": "soft", "tooltip":
                       "canny: lines one pixel wide. soft: lines as bright as the edge is strong. none: the image "
                       "already is an edge map or drawing, white on black, and is used unchanged. invert: the image "
                       "is a drawing, black on white, and is inverted."}),
            "low": ("FLOAT", {"default": 0.4, "min": 0.01, "max": 4.0, "step": 0.01, "tooltip":
                    "canny only, 0.01 to 4: a line continues while the edge strength exceeds this; at most high. "
                    "Good: half of high. An edge from black to white has about 2.6 at blur 1."}),
            "high": ("FLOAT", {"default": 0.8, "min": 0.01, "max": 4.0, "step": 0.01, "tooltip":
                     "canny only, 0.01 to 4: a line starts where the edge strength exceeds this. Lower values find "
                     "more lines. Good: 0.3 to 1."}),
            "blur": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 20.0, "step": 0.1, "tooltip":
                     "canny and soft, 0 to 20 pixels: blurs the image first, so that grain does not become edges. "
                     "Also sets the width of soft lines. Good: 1 at 512 pixels, 2 at 1024."}),
            "strength": ("FLOAT", {"default": 2.0, "min": 0.0, "max": 20.0, "step": 0.1, "tooltip":
                         "soft only, 0 to 20: brightness of the lines. 1: only an edge from black to white becomes "
                         "fully white. 2: an edge half as strong already does."}),
        }, "optional": size_inputs()}

    @checked
    def find(self, image: Any, method: str, low: float, high: float, blur: float, strength: float, width: int = 0,
             height: int = 0) -> tuple[Any]:
        from .host.edges import find_edges
        return (find_edges(image, method, low, high, blur, strength, width, height),)


class PixArtHED:
    DESCRIPTION = ("Finds HED edges exactly as used to train PixArt-delta's ControlNet: soft, not quantised, at the "
                   "size of the final image. Needs ControlNetHED.pth (29 MB) in models/controlnet.")
    CATEGORY = "PixArt/controlnet"
    FUNCTION = "find"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("edges",)
    OUTPUT_TOOLTIPS = ("White edges on black, one map per image.",)
    SEARCH_ALIASES = ["hed", "soft edge", "softedge", "edge detection", "preprocessor", "controlnet",
                      "holistically-nested edge detection"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {
            "image": ("IMAGE", {"tooltip": "Images of any size; transparent areas count as mid-grey."}),
            "file": (folders.hed_files(), {"tooltip":
                     "ControlNetHED as .pth or .safetensors, in models/controlnet or models/annotators. Files with "
                     "hed in their name are listed."}),
        }, "optional": size_inputs()}

    @classmethod
    def VALIDATE_INPUTS(cls, file: str | None = None) -> bool | str:
        return folders.is_there(file, folders.hed_path)

    @classmethod
    def IS_CHANGED(cls, file: str | None = None, **_: object) -> str:
        return folders.changed(file, folders.hed_path)

    @checked
    def find(self, image: Any, file: str, width: int = 0, height: int = 0) -> tuple[Any]:
        from .host.edges import hed_image
        return (hed_image(image, folders.hed_path(file), width, height),)
