"""Which data type computes faster on this CPU, decided by properties that do not change between runs.

A timing trial would depend on the load of the machine, and with it the image: noise predictions in bfloat16 differ from
float32 ones by about 1 % (relative root mean square). So processor and width decide. Time in bfloat16 as a share of
that in float32, on an Intel Xeon with AMX, one thread, 256 tokens, torch 2.11, best of 6 rounds, by width:

                                    96     192    1152
    with its matrix units (AMX)     0.73   0.52   0.22
    with AVX512-BF16 alone          1.26   1.41   1.57
    with AVX2 alone                        56     8.9
"""
import os
from functools import lru_cache
from pathlib import Path

import torch

NARROWEST = 128         # from this width on bfloat16 pays; below it saves less than a third, or nothing with few tokens
CPUINFO = Path("/proc/cpuinfo")
LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")     # by which users keep oneDNN from newer instructions


def faster_dtype(width: int) -> torch.dtype:
    """torch.bfloat16 or torch.float32 for matrices of this width: the same on every start of one machine."""
    return torch.bfloat16 if width >= NARROWEST and has_matrix_units() else torch.float32


def fitting_dtype(device: torch.device, width: int) -> torch.dtype:
    """bfloat16 on a GPU; on a CPU the faster one for a model of this width."""
    return faster_dtype(width) if device.type == "cpu" else torch.bfloat16


def has_matrix_units() -> bool:
    """Whether products of bfloat16 matrices run on AMX units, and the user lets them."""
    limits = [os.environ[name].upper() for name in LIMITS if os.environ.get(name)]
    return processor_has_amx() and all("AMX" in limit or limit in ("ALL", "DEFAULT") for limit in limits)


@lru_cache(maxsize=1)
def processor_has_amx() -> bool:
    """As torch reports it (from 2.10 on), else as Linux lists it for the processor; False where neither does."""
    if hasattr(torch.cpu, "get_capabilities"):
        return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
    if not CPUINFO.is_file():
        return False
    flags = (line for line in CPUINFO.read_text(errors="replace").splitlines() if line.startswith("flags"))
    return "amx_bf16" in next(flags, "").split()
