"""A LoRA on a MODEL: patches that the host applies, moves and takes back like its own."""
import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...pixart.checkpoint.lora import Change, LoraPart, read_lora
from ...pixart.checkpoint.lora.read import lora_header
from .branches import add_branches
from .quantized import quantized_weights
from .steps import attach

HOST_PREFIX = "diffusion_model."


def apply_lora(model: Any, path: Path, strength: float, alpha: float | None = None) -> tuple[Any, str]:
    """MODEL with the LoRA at its true scale times strength, and one line about what was used.

    The MODEL may be ours or of the host's own PixArt loader. Strength 0 gives back the MODEL as it is. Raises
    ValueError for a MODEL that is not PixArt and what `read_lora` raises.
    """
    from comfy import model_base
    if not isinstance(model.model, model_base.PixArt):
        raise ValueError(f"this LoRA loader is for PixArt; the MODEL is {type(model.model).__name__}. Use the stock "
                         "LoRA loader for it.")
    shapes = {name.removeprefix(HOST_PREFIX): tuple(tensor.shape) for name, tensor in model.model.state_dict().items()
              if name.startswith(HOST_PREFIX)}
    quantized = {name: tuple(weight.shape) for name, weight in quantized_weights(model.model.diffusion_model)}
    shapes.update(quantized)                # their tensors have other shapes
    lora = read_lora(path, alpha).fitted(shapes)
    if strength == 0:
        return model, lora.description
    patched = model.clone()
    beside = [part for part in lora.parts if part.target in quantized]
    patched.add_patches({host_key(part, shapes[part.target]): adapter(part) for part in lora.parts
                         if part.target not in quantized}, strength)
    if beside:
        add_branches(patched, beside, strength)
    return attach(patched, *lora_header(path)), lora.description


def host_key(part: Change, shape: tuple[int, ...]) -> str | tuple[str, tuple[int, int, int]]:
    """The host's name of a weight or bias, or of some of its rows."""
    name = HOST_PREFIX + part.target
    return name if part.parts == 1 else (name, (0, *part.rows(shape)))


def adapter(part: Change) -> Any:
    """The host's form of a change. Tensors are copied, so that the file can be replaced while the MODEL is in use."""
    from comfy.weight_adapter import LoRAAdapter
    part = part.on("cpu", copy=True)
    if isinstance(part, LoraPart) and part.magnitude is None and part.mid is None:
        return LoRAAdapter(set(), (part.up, part.down, part.scale * part.rank, None, None, None))
    values = part.tensors
    blank = replace(part, **dict.fromkeys(values))
    return change_class()(set(), (blank, tuple(values), *values.values()))


@functools.cache
def change_class() -> type:
    """The host's adapter with the formula of the library, where the host has another or none.

    For DoRA the host divides by the norms of the unchanged rows, where the paper takes those of the changed ones
    (arXiv 2402.09353, eq. 5); its OFT and BOFT square the strength; its BOFT fails without an alpha. The tensors are
    in `weights`, one by one, where the host finds what it moves between devices.
    """
    from comfy.weight_adapter.base import WeightAdapterBase

    class PixArtChange(WeightAdapterBase):
        name = "pixart"

        def __init__(self, loaded_keys: set, weights: tuple) -> None:
            self.loaded_keys, self.weights = loaded_keys, weights

        def change(self, device: torch.device) -> Change:
            blank, names, *tensors = self.weights
            values = {name: tensor.to(device) for name, tensor in zip(names, tensors, strict=True)}
            return replace(blank, **values)

        def calculate_weight(self, weight: Tensor, key: str, strength: float, strength_model: float, offset: Any,
                             function: Any, intermediate_dtype: torch.dtype = torch.float32,
                             original_weight: Any = None) -> Tensor:
            exact = weight.to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
            added = strength * self.change(weight.device).change(exact)
            weight += function(added.to(weight.dtype))
            return weight
    return PixArtChange
