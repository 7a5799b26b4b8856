"""A LoRA on a MODEL: patches that the host applies, moves and takes back like its own."""
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...pixart.checkpoint.lora import LoraPart
from ...pixart.checkpoint.lora_read import read_lora

PREFIX = "diffusion_model."


def apply_lora(model: Any, path: Path, strength: float, alpha: float | None = None) -> tuple[Any, str]:
    """MODEL with the LoRA at its true scale times strength, and one line about what was used.

    The MODEL may be ours or of the host's own PixArt loader. Strength 0 gives back the MODEL as it is. Raises
    ValueError for a MODEL that is not PixArt and what `read_lora` raises.
    """
    from comfy import model_base
    if not isinstance(model.model, model_base.PixArt):
        raise ValueError(f"this LoRA loader is for PixArt; the MODEL is {type(model.model).__name__}. Use the stock "
                         "LoRA loader for it.")
    shapes = {name.removeprefix(PREFIX): tuple(tensor.shape) for name, tensor in model.model.state_dict().items()
              if name.startswith(PREFIX)}
    lora = read_lora(path, alpha).fitted(shapes)
    if strength == 0:
        return model, lora.description
    patched = model.clone()
    patched.add_patches({place(part): adapter(part) for part in lora.parts}, strength)
    return patched, lora.description


def place(part: LoraPart) -> str | tuple[str, tuple[int, int, int]]:
    """The host's name of a weight, or of some of its rows."""
    name = f"{PREFIX}{part.module}.weight"
    return name if part.parts == 1 else (name, (0, *part.rows))


def adapter(part: LoraPart) -> Any:
    """The host's form of a change. Tensors are copied, so that the file can be replaced while the MODEL is in use."""
    from comfy.weight_adapter import LoRAAdapter
    kind = LoRAAdapter if part.magnitude is None else dora_class()
    magnitude = None if part.magnitude is None else part.magnitude.clone()
    return kind(set(), (part.up.clone(), part.down.clone(), part.scale * part.rank, None, magnitude, None))


@functools.cache
def dora_class() -> type:
    """The host's LoRA adapter with DoRA as peft computes it.

    The host divides by the lengths of the unchanged rows, DoRA by those of the changed ones (arXiv 2402.09353, eq. 5).
    """
    from comfy.weight_adapter import LoRAAdapter

    class PixArtDoRA(LoRAAdapter):
        def calculate_weight(self, weight: Tensor, key: str, strength: float, strength_model: float, offset: Any,
                             function: Any, intermediate_dtype: torch.dtype = torch.float32,
                             original_weight: Any = None) -> Tensor:
            up, down, alpha, _, magnitude, _ = self.weights
            up, down, magnitude = (tensor.to(weight.device) for tensor in (up, down, magnitude))
            part = LoraPart(key, 0, 1, down, up, alpha / up.shape[1], magnitude)
            exact = weight.to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
            weight += function((strength * part.change(exact)).to(weight.dtype))
            return weight
    return PixArtDoRA
