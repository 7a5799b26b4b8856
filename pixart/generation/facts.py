"""How an image was made, as one text in the form of A1111's `parameters`, which many image viewers read.

    PROMPT
    Negative prompt: WHAT TO AVOID
    Steps: 4, Sampler: lcm, CFG scale: 1, Seed: 7, Size: 1024x1024, Model: PixArt-LCM-XL-2-1024-MS

Only what is known is written: names of files without their folders, and no hash of the model, for which the whole file
would have to be read.
"""
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..mini import SHIPPED
from ..sampling.preset import telling_name
from ..weights.locate import WEIGHT_SUFFIXES

if TYPE_CHECKING:
    from ..control.control_image import ControlImage
    from ..model.policy import Policy
    from .image_to_image import StartImage
    from .pipeline_files import PipelineFiles
    from .request import Request


@dataclass(frozen=True)
class ImageFacts:
    """What determines one image. settings: names and values in the order in which they are written."""

    prompt: str
    negative: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def parameters(self) -> str:
        """The text; its last line holds the settings."""
        negative = f"Negative prompt: {self.negative}\n" if self.negative else ""
        return f"{self.prompt}\n{negative}" + ", ".join(f"{name}: {quoted(value)}"
                                                         for name, value in self.settings.items())


def quoted(value: str) -> str:
    """A value that contains what separates values is written as a JSON text."""
    return json.dumps(value, ensure_ascii=False) if set(value) & set(',:\n"') else value


def image_facts_of(request: "Request", files: "PipelineFiles | None" = None, *, nag: float = 1.0,
                   control: "ControlImage | None" = None, policies: "Sequence[Policy]" = (), own_noise: bool = False,
                   start: "StartImage | None" = None) -> list[ImageFacts]:
    """Facts of each image of a request. files: None for networks in memory, of which no name is known.

    own_noise: whether the images start from given noise and not from that of their seeds. start: the image to begin
    with. The others are arguments of the pipeline that change its images.
    """
    negative = request.negative if request.guided or nag != 1 else ""
    guidance = request.guidance if request.guided else 1.0
    model = None if files is None else files.checkpoint.weights.path
    more = {"Rule": "" if request.rule == "official" else request.rule, "NAG": "" if nag == 1 else f"{nag:g}",
            "Noise": "custom" if own_noise else "",
            "Denoising strength": "" if start is None else f"{start.denoise:g}",
            "Mask": "custom" if start is not None and start.mask is not None else "",
            "Policies": " + ".join(type(policy).__name__ for policy in policies)}
    if files is not None:
        more["LoRA"] = " + ".join(f"{model_name(path)} {strength:g}" for path, strength in files.loras if strength)
    if control is not None:
        more |= control_facts(control, None if files is None else files.controlnet)
    more = {name: text for name, text in more.items() if text}
    return [ImageFacts(prompt, negative,
                       sampling_facts(request.steps, request.sampler, guidance, request.seed + number, request.width,
                                      request.height, model) | more)
            for number, prompt in enumerate(request.prompts)]


def control_facts(control: "ControlImage", controlnet: str | Path | None) -> dict[str, str]:
    return {"ControlNet": "" if controlnet is None else model_name(controlnet),
            "Control strength": f"{control.strength:g}",
            "Control range": "" if (control.start, control.end) == (0, 1) else f"{control.start:g} to {control.end:g}"}


def sampling_facts(steps: int, sampler: str, guidance: float, seed: int, width: int, height: int,
                   model: str | Path | None) -> dict[str, str]:
    """The settings that every image has, under A1111's names; width and height in pixels."""
    known = {"Steps": str(steps), "Sampler": sampler, "CFG scale": f"{guidance:g}", "Seed": str(seed),
             "Size": f"{width}x{height}"}
    name = "" if model is None else model_name(model)
    return known | ({"Model": name} if name else {})


def model_name(path: str | Path) -> str:
    """Of a file or folder, without its place and ending; files of PixArt-mini as ComfyUI lists them.

    A file with a name that says nothing is named by its folder only if that is of this family: others may be private.
    """
    path = Path(path)
    around = telling_name(path)
    name = around if "pixart" in around.lower() else path.name
    name = name.removesuffix(next((end for end in WEIGHT_SUFFIXES if name.endswith(end)), ""))
    return f"{path.parent.name}/{name}" if SHIPPED.root in path.parents else name
