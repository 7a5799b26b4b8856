"""Names of data types, as options, settings and nodes spell them."""
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

COMPUTE_DTYPES = ("fp32", "bf16", "fp16")
_NAMES_OF_TORCH = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16",
                   "fp8_e4m3fn": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}
WEIGHT_DTYPES = ("auto", *_NAMES_OF_TORCH)      # of a transformer in ComfyUI; auto: as device and file suggest


def dtype_named(name: str) -> "torch.dtype":
    """The data type of one of these names. KeyError for "auto" and for any other."""
    import torch
    return getattr(torch, _NAMES_OF_TORCH[name])


def dtype_or_auto(name: str) -> "torch.dtype | None":
    """None for "auto"."""
    return None if name == "auto" else dtype_named(name)
