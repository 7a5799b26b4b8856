"""PixArt files trained under muP with a readout multiplier (GSAI-ML/DiT-muP), folded into a standard PixArt.

There the last layer computes W (x / m) + b with m = width / 288; a standard one does the same with W / m. The
multiplier leaves no trace: names, shapes and the position table are those of a 256 px PixArt-alpha. So it is
recognised by the file's name or chosen as a variant. What this package trains under muP needs no folding.
"""
import logging
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..config import VARIANTS, PixArtConfig
from ..weights.errors import CheckpointError

logger = logging.getLogger(__name__)

VARIANT = "alpha-256-mup"
BASE_WIDTH = 288                # 4 heads, the base model of the published base-shape file
READOUT = "final_layer.linear.weight"
NAME = re.compile(r"(?<![a-z])(mu|\u00b5|\u03bc)p(?![a-z])")      # "PixArt-alpha-muP", also with a micro or a Greek mu
MUP_FOLDER = re.compile(r"dit-mup(?![a-z])")                      # of the published files, also inside a cache


def readout_divisor(config: PixArtConfig, variant: str | PixArtConfig, layout: str, own: bool,
                    path: Path) -> tuple[float, bool]:
    """(what to divide the readout by, whether that is guessed from names); 1 for a standard model.

    own: by its header this package wrote the file, with a standard readout. Raises CheckpointError where the user asks
    to fold such a file.
    """
    if variant == VARIANT:
        if own:
            raise CheckpointError(path, f"variant {VARIANT} was chosen for a file that this package wrote, with the "
                                  "readout of a standard model", "variant auto")
        return config.hidden / BASE_WIDTH, False
    if variant != "auto" or own or layout != "reference" or not named_mup(path) or not _fits(config):
        return 1.0, False
    divisor = config.hidden / BASE_WIDTH
    logger.warning("%s: taken for %s by its name: the readout is divided by %g. Choose variant alpha-256 if it is a "
                   "standard file", path.name, VARIANT, divisor)
    return divisor, True


def named_mup(path: Path) -> bool:
    """Whether a file or the folder of the release says muP."""
    return bool(NAME.search(path.name.lower())) or any(MUP_FOLDER.search(part.lower()) for part in path.parts[:-1])


def _fits(config: PixArtConfig) -> bool:
    """Whether a model can be of the published kind; depth and width are free."""
    fixed = ("base_size", "position_scale", "micro_conditioning", "latent_space", "learned_variance", "qk_norm",
             "kv_compression")
    return all(getattr(config, name) == getattr(VARIANTS[VARIANT], name) for name in fixed)


def fold_readout(state_dict: Mapping[str, Tensor], divisor: float) -> dict[str, Tensor]:
    """The state dict (reference names) of the standard model with the same outputs; the bias has no multiplier."""
    weight = state_dict[READOUT]
    return {**state_dict, READOUT: (weight.to(torch.float32) / divisor).to(weight.dtype)}
