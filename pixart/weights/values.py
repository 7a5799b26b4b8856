"""Whether tensors can be weights: floating-point numbers, all of them finite."""
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from .errors import CheckpointError

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2)
NOT_FINITE_BITS = {torch.float8_e4m3fn: 0x7F, torch.float8_e5m2: 0x7C}  # lowest bits, without sign, of NaN or infinity
E8M0 = getattr(torch, "float8_e8m0fnu", None)     # 8 bits of exponent, the scales of MXFP8; 0xFF is NaN
PART = 1 << 24              # 8-bit numbers checked at once

# Parts of names that tell which program quantised a file; the first that occurs names it.
QUANTIZED = (
    (".quant_state.bitsandbytes__nf4", "bitsandbytes (NF4)"), (".quant_state.bitsandbytes__fp4", "bitsandbytes (FP4)"),
    (".absmax", "bitsandbytes (4 bits)"), (".SCB", "bitsandbytes (8 bits)"), ("weight._data", "quanto"),
    (".svdq", "nunchaku (SVDQuant)"), (".wscales", "nunchaku (SVDQuant)"), (".qzeros", "GPTQ or AWQ"),
    (".qweight", "GPTQ or AWQ"), (".comfy_quant", "ComfyUI"), (".scale_weight", "ComfyUI (scaled fp8)"),
    ("scaled_fp8", "ComfyUI (scaled fp8)"), (".weight_scale", "scaled fp8"), ("_packed", "a packing program"),
)


def quantized_by(names: Iterable[str]) -> str | None:
    """The program that quantised tensors of these names; None for plain weights."""
    names = list(names)
    return next((program for mark, program in QUANTIZED if any(mark in name for name in names)), None)


def refuse_quantized(names: Iterable[str], path: Path, expected: str) -> None:
    """CheckpointError that names the program where the names show that a file was quantised."""
    program = quantized_by(names)
    if program is not None:
        raise CheckpointError(path, f"weights that were quantised by {program}", expected,
                              "Use the file as it was before, in 16 or 32 bits (or plain fp8).")


def check_floating(name: str, tensor: Tensor, path: Path, expected: str) -> None:
    """CheckpointError unless a tensor's numbers are of a kind that networks compute with."""
    if tensor.dtype not in FLOATING:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise CheckpointError(path, f"{name} holds {kind} numbers, not floating-point weights", expected,
                              "It was quantised by another program, or is damaged; use the original weights.")


def check_finite(name: str, tensor: Tensor, path: Path, expected: str, dtype: torch.dtype = torch.float32) -> None:
    """CheckpointError where a number is NaN or infinite, or would be in `dtype`: it would make every image black.

    Networks compute in float32 at most, so what a float64 tensor holds beyond its range is refused too.
    """
    if not is_finite(tensor):
        raise CheckpointError(path, f"{name} holds numbers that are not finite (NaN or infinity)", expected,
                              "The file is damaged, or its training went wrong; use another one.")
    if not fits(tensor, dtype):
        action = ("Choose a wider data type where you can, or use another file" if dtype.itemsize < 4 else
                  "The file is damaged; use another one")
        kind = str(dtype).removeprefix("torch.")
        raise CheckpointError(path, f"{name} holds numbers too large for {kind}", expected, f"{action}.")


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite, without a copy of the tensor's size."""
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    if tensor.dtype == E8M0:
        return int(tensor.contiguous().view(torch.uint8).max()) < 0xFF
    if tensor.dtype in EIGHT_BITS:
        parts = tensor.contiguous().view(-1).view(torch.uint8).split(PART)
        return all(int((part & 0x7F).max()) < NOT_FINITE_BITS[tensor.dtype] for part in parts)
    return all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor))      # NaN wins over every number in both


def fits(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether finite numbers stay finite in `dtype`: the smallest and the largest of them tell."""
    if tensor.numel() == 0 or not tensor.is_floating_point() or tensor.dtype in (*EIGHT_BITS, E8M0):
        return True
    if torch.finfo(dtype).max >= torch.finfo(tensor.dtype).max:
        return True
    return all(bool(torch.isfinite(end.to(dtype).float())) for end in torch.aminmax(tensor))
