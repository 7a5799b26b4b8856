"""Weights that may be written to, and LoRAs merged into them."""
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from torch import nn

from ..model.transformer import PixArtTransformer
from .lora import merge_lora, read_lora

Owned = TypeVar("Owned", bound=nn.Module)


def owned(model: Owned) -> Owned:
    """Copies the weights in place: those of `load` may be views of the mapped file, which must not be written to."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def with_loras(model: PixArtTransformer, loras: Sequence[tuple[str | Path, float]]) -> PixArtTransformer:
    """Merge LoRA files or folders, each at a strength, into a model that was just loaded; returns it.

    If all strengths are 0 not even its memory moves, since alignment may decide the last bit of a product. Raises what
    reading a LoRA raises, and ValueError for one that does not fit the model.
    """
    read = [(read_lora(path), strength) for path, strength in loras]
    if any(strength for _, strength in read):
        owned(model)
    for lora, strength in read:
        merge_lora(model, lora, strength)
    return model


def load_lora(model: PixArtTransformer, path: str | Path, strength: float = 1.0) -> PixArtTransformer:
    """Merge a LoRA file or folder into a freshly loaded model and return it. strength: 1 is as trained.

    Raises as `with_loras` does.
    """
    return with_loras(model, [(path, strength)])
