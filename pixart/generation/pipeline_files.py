"""The files of a pipeline: checked when it is opened, read when they are first needed."""
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..checkpoint import OpenCheckpoint, open_checkpoint
from ..checkpoint.control import require_fitting_control
from ..checkpoint.lora.read import lora_header
from ..checkpoint.merged import with_loras
from ..mini import SHIPPED
from ..model.transformer import PixArtTransformer
from ..sampling.preset import Preset, found_in
from ..vae import require_scale, require_vae
from ..weights.locate import WEIGHT_SUFFIXES

AnyPath = str | Path            # a file or a folder
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class PipelineFiles:
    """Opened and checked. loras: with strengths. compile: whether the networks of these files are to be compiled."""

    checkpoint: OpenCheckpoint
    vae: AnyPath
    controlnet: AnyPath | None
    loras: tuple[tuple[AnyPath, float], ...]
    compile: bool

    @classmethod
    def open(cls, model: AnyPath | None, vae: AnyPath | None, controlnet: AnyPath | None,
             loras: Sequence[tuple[AnyPath, float]], variant: str, compile: bool) -> "PipelineFiles":
        """model None: PixArt-mini, with its VAE and ControlNet where those are None. Raises as `open_checkpoint`."""
        require_vae(vae or SHIPPED.vae)
        for path, _ in loras:
            lora_header(path)
        checkpoint = open_checkpoint(model or SHIPPED.student, variant)
        require_scale(vae or SHIPPED.vae, checkpoint.config.latent_scale, f"the model {checkpoint.weights.path.name}",
                      ", or the variant of the model if it was taken for another")
        if controlnet is not None:
            require_fitting_control(controlnet, checkpoint.config)
        if model is None and controlnet is None:
            controlnet = SHIPPED.control
        return cls(checkpoint, vae or SHIPPED.vae, controlnet, tuple(loras), compile)

    def preset(self, guidance: float) -> Preset:
        """How the checkpoint with its LoRAs should be sampled; guidance: the scale if they do not say."""
        weights = self.checkpoint.weights
        loras = [lora_header(Path(path)) for path, strength in self.loras if strength]
        return found_in([(weights.path, weights.metadata), *loras], guidance)

    def read_transformer(self, dtype: torch.dtype, device: torch.device) -> PixArtTransformer:
        """With the LoRAs merged, in evaluation mode."""
        return with_loras(self.checkpoint.load(dtype, device), self.loras)


def parts_in(model: AnyPath | None, vae: AnyPath | None, t5: AnyPath | None) -> tuple[AnyPath | None, AnyPath | None]:
    """VAE and T5: those that are named, else those of the diffusers pipeline in whose folder the model lies.

    FileNotFoundError where the model is named as a repository on Hugging Face.
    """
    refuse_hub_name(model)
    if model is None or not Path(model, "transformer").expanduser().is_dir():
        return vae, t5
    beside = [Path(model).expanduser() / name for name in ("vae", "text_encoder")]
    found = [place if given is None and place.is_dir() else given for given, place in zip((vae, t5), beside)]
    return found[0], found[1]


def refuse_hub_name(model: AnyPath | None) -> None:
    """FileNotFoundError for what diffusers would download, such as "PixArt-alpha/PixArt-XL-2-1024-MS"."""
    name = "" if model is None else Path(model).as_posix()
    if HUB_NAME.fullmatch(name) and not name.lower().endswith(WEIGHT_SUFFIXES) and not Path(name).exists():
        raise FileNotFoundError(f"there is no file or folder {name} here, and names on Hugging Face are not looked up; "
                                "give the folder of a download, or see python -m pixart download --list")


def require_files(model: AnyPath | None, vae: AnyPath | None, t5: AnyPath | None,
                  others: Sequence[tuple[str, AnyPath | None]]) -> None:
    """Refuse parts that are missing, before anything is opened."""
    for name, given in (("vae", vae), ("t5", t5)):
        if model is not None and given is None:
            raise ValueError(f"model needs {name} too: that of PixArt-mini only fits PixArt-mini. Only the folder of a "
                             "whole diffusers pipeline brings its own")
    for name, given in (("model", model), ("vae", vae), ("t5", t5), *others):
        if given is not None and not Path(given).expanduser().exists():
            raise FileNotFoundError(f"there is no file or folder for {name} at this place: {given}")
