"""Write a PixArt transformer: safetensors, reference names, its configuration in the header."""
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import PixArtConfig
from ..weights.safetensors_file import write_tensors
from ..weights.values import fits, is_finite
from .header import to_header
from .layouts import POSITION_TABLE, file_name, to_reference
from .load import compare_shapes


def save_checkpoint(path: str | os.PathLike, weights: nn.Module | Mapping[str, Tensor],
                    config: PixArtConfig | None = None, dtype: torch.dtype | None = None,
                    metadata: Mapping[str, str] | None = None) -> Path:
    """Save a model or a state dict (reference or diffusers names) so that `load` needs no detection.

    config: that of the model by default. dtype: convert floating-point tensors. metadata: further header entries. The
    file is written under a temporary name and renamed, so an interruption never leaves half a file. Raises ValueError
    without a configuration, CheckpointError when the weights do not fit it.
    """
    path = Path(path)
    config = config or getattr(weights, "config", None)
    if config is None:
        raise ValueError("a state dict does not say its configuration; pass config")
    tensors = reference_state_dict(weights)
    compare_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, config, path)
    tensors = {name: plain_tensor(name, tensor, dtype) for name, tensor in tensors.items()}
    header = {"format": "pt", **(metadata or {}), **to_header(config)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, header)
    return path


def reference_state_dict(weights: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names of the published files, without the position table."""
    state_dict = weights.state_dict() if isinstance(weights, nn.Module) else weights
    if "adaln_single.linear.weight" in state_dict:
        return to_reference(state_dict)
    return {file_name(name): tensor for name, tensor in state_dict.items() if name != POSITION_TABLE}


def plain_tensor(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Contiguous on the CPU; floating-point tensors in `dtype` where that is given.

    Raises ValueError where `dtype` would make a number infinite.
    """
    tensor = tensor.detach()
    if dtype is not None and is_finite(tensor) and not fits(tensor, dtype):
        kind = str(dtype).removeprefix("torch.")
        raise ValueError(f"{name} holds numbers too large for {kind}; save it with a wider data type")
    return tensor.to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
