"""The node that reads many prompts from one file."""
from ..pixart.files.prompts import LAST_SEED
from .arguments import checked
from .host import folders, inputs
from .host.node_text import show_text
from .latent import SIDE_INPUT

MOST_PROMPTS = 10_000   # prompts of one run


class PixArtPromptList:
    DESCRIPTION = ("Reads prompts from a text file, CSV or JSON Lines in ComfyUI's input folder; the nodes after it "
                   "run once per line. A line may have its own seed, width, height and negative prompt.")
    CATEGORY = "PixArt/utilities"
    FUNCTION = "read"
    RETURN_TYPES = ("STRING", "INT", "INT", "INT", "STRING")
    RETURN_NAMES = ("prompt", "seed", "width", "height", "negative")
    OUTPUT_TOOLTIPS = ("One prompt per line, for PixArt Text Encode.",
                       "From the line, else counted up from the input seed.",
                       "Width in pixels, from the line or the input.",
                       "Height in pixels, from the line or the input.",
                       "From the line, else empty.")
    OUTPUT_IS_LIST = (True, True, True, True, True)
    SEARCH_ALIASES = ["prompts from file", "batch prompts", "csv", "jsonl", "load text file", "wildcards"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {
            "file": (inputs.prompt_files(), {"tooltip":
                     "A list in ComfyUI's input folder. .txt: one prompt per line. .csv: a header line with prompt "
                     "and optionally negative, seed, width, height. .jsonl: objects with these keys. pixart-mini/... "
                     "is included."}),
            "start": ("INT", {"default": 1, "min": 1, "max": 10_000_000, "tooltip": "Number of the first prompt to "
                                                                                    "use."}),
            "count": ("INT", {"default": 100, "min": 1, "max": MOST_PROMPTS, "tooltip": "Maximum number of prompts."}),
            "seed": ("INT", {"default": 0, "min": 0, "max": LAST_SEED, "control_after_generate": True, "tooltip":
                     "Seed of the first prompt in the list, for lines without a seed; each following line counts up, "
                     "so a prompt keeps its seed wherever you start."}),
            "width": ("INT", {**SIDE_INPUT, "tooltip": "In pixels, for lines without a size."}),
            "height": ("INT", {**SIDE_INPUT, "tooltip": "In pixels, for lines without a size."}),
        }}

    @classmethod
    def VALIDATE_INPUTS(cls, file: str | None = None) -> bool | str:
        return folders.is_there(file, inputs.prompt_path)

    @classmethod
    def IS_CHANGED(cls, file: str | None = None, **_: object) -> str:
        return folders.changed(file, inputs.prompt_path)

    @checked
    def read(self, file: str, start: int, count: int, seed: int, width: int, height: int
             ) -> tuple[list[str], list[int], list[int], list[int], list[str]]:
        from ..pixart.files.prompts import read_prompts
        lines = read_prompts(inputs.prompt_path(file))
        if start > len(lines):
            raise ValueError(f"start is {start}, the list has {len(lines)} prompts; choose 1 to {len(lines)}")
        taken = list(enumerate(lines))[start - 1:start - 1 + count]
        show_text(f"prompts {start} to {start - 1 + len(taken)} of {len(lines)}")
        seeds = [(seed + number) % (LAST_SEED + 1) if line.seed is None else line.seed for number, line in taken]
        return ([line.prompt for _, line in taken], seeds, [line.width or width for _, line in taken],
                [line.height or height for _, line in taken], [line.negative for _, line in taken])
