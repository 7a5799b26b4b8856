"""A quick trial of which data type computes faster on this CPU.

bfloat16 runs up to four times faster than float32 on processors with matrix units for it, and several times slower on
those without; which is the case depends on the processor and on the build of torch, so it is measured, not looked up.
Noise predictions in bfloat16 differ from float32 ones by about 1 % (relative root mean square).
"""
import time
from functools import lru_cache

import torch
from torch.nn import functional as F

GAIN = 0.8          # bfloat16 must need less than this share of float32's time to be worth its rounding
TOKENS = 512


@lru_cache(maxsize=8)
def faster_dtype(width: int) -> torch.dtype:
    """torch.bfloat16 or torch.float32, whichever runs an MLP and attention of this width faster on the CPU.

    Takes about half a second for width 1152 and is remembered for the life of the process.
    """
    exact = trial_seconds(width, torch.float32)
    if trial_seconds(width, torch.bfloat16, repeats=1) > 3 * exact:
        return torch.float32
    return torch.bfloat16 if trial_seconds(width, torch.bfloat16) < GAIN * exact else torch.float32


@torch.no_grad()
def trial_seconds(width: int, dtype: torch.dtype, repeats: int = 3) -> float:
    """Best of `repeats` runs, after one to warm up."""
    x = torch.ones(1, TOKENS, width, dtype=dtype)
    inner, outer = torch.ones(4 * width, width, dtype=dtype), torch.ones(width, 4 * width, dtype=dtype)

    def run() -> None:
        heads = x.unflatten(2, (4, -1)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)
        F.linear(F.gelu(F.linear(mixed, inner), approximate="tanh"), outer)

    run()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
