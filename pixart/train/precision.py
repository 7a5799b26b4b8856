"""In which precision a training computes, and whether the weights allow it."""
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..model.cpu_dtype import faster_dtype

TRAINING_PRECISIONS = ("auto", "no", "bf16", "fp16")
HALF = (torch.float16, torch.bfloat16)


def fitting_precision(device: torch.device, width: int) -> str:
    """bf16 where the device computes with it and gains by it; fp16 on GPUs that lack it; "no" on others.

    width: of the matrices. On a CPU the processor decides: bf16 is several times faster on some and slower on others.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "cpu" and faster_dtype(width) == torch.bfloat16 else "no"


def saved_precision(state: Mapping[str, Any] | None) -> str | None:
    """What a training computed in so far, by its state; None where there is none or it does not say."""
    found = (state or {}).get("settings", {}).get("precision")
    return found if found in TRAINING_PRECISIONS else None


def widest(model: nn.Module) -> int:
    """Most columns of a matrix of the model."""
    return max(parameter.shape[1] for parameter in model.parameters() if parameter.ndim == 2)


def check_precision(model: nn.Module, precision: str) -> None:
    """Refuse weights that would lose small updates, or that cannot be mixed."""
    lossy = [name for name, p in model.named_parameters() if p.requires_grad and p.dtype in HALF]
    if lossy:
        raise ValueError(f"{len(lossy)} trained tensors are 16-bit, the first is {lossy[0]}; load what is trained in "
                         "float32 and set precision to bf16 or fp16")
    if precision == "no" and any(p.dtype in HALF for p in model.parameters()):
        raise ValueError("precision is \"no\" but the frozen weights are 16-bit; use precision bf16 or fp16, or load "
                         "them in float32")
