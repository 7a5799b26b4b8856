"""Where the time of a run goes, kernel by kernel."""
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from .notes import Notes
from .setting import Setting
from .timing import median

LINES, NAME = 15, 90
# Part of a kernel's name -> what it does; the first that fits counts.
KINDS = {"memcpy": "copies", "memset": "copies", "flash": "attention", "fmha": "attention", "attention": "attention",
         "sdpa": "attention", "gemm": "matrix products", "xmma": "matrix products", "cutlass": "matrix products",
         "nvjet": "matrix products", "conv": "convolutions", "layer_norm": "layer norm",
         "triton": "fused by the compiler", "gelu": "activation",
         "cat": "joining and copying", "copy": "joining and copying",
         "elementwise": "elementwise", "reduce": "reductions"}


def profiled(title: str, run: Callable[[], object], setting: Setting, notes: Notes) -> float:
    """Writes the table of kernels and of their kinds; returns how much of the time the device was busy, in %."""
    elapsed = median(run, setting)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setting.cuda else [])]
    with profile(activities=activities) as recorded:
        run()
        if setting.cuda:
            torch.cuda.synchronize()
    events = list(recorded.key_averages())
    kernels = [(event.key, event.count, time_of(event, setting)) for event in events if is_kernel(event, setting)]
    total = sum(milliseconds for _, _, milliseconds in kernels)
    copies = sum(count for name, count, _ in kernels if "HtoD" in name)
    waits = sum(event.count for event in events if "Synchronize" in event.key)
    busy = 100 * total / elapsed
    head = (f"{elapsed:.2f} ms elapsed without the profiler, {total:.2f} ms in {sum(k[1] for k in kernels)} kernels: "
            f"busy {busy:.0f} %; {copies} copies from the host, {waits} waits for the device")
    notes.text(f"Profile: {title}", "\n".join([head, "", *by_kind(kernels, total), "", *by_kernel(kernels, total)]))
    notes.row("Where the time goes", what=title, waits=waits, **{
        "elapsed ms": elapsed, "kernels ms": total, "busy %": busy, "kernels": sum(k[1] for k in kernels),
        "copies from the host": copies})
    return busy


def is_kernel(event: torch.autograd.profiler_util.FunctionEventAvg, setting: Setting) -> bool:
    """On a GPU what ran there, and no span that only names a part of it; on a CPU every operator."""
    if getattr(event, "is_user_annotation", False) or str(event.key).startswith(("Torch-Compiled", "## Call")):
        return False
    return event.device_type == torch.autograd.DeviceType.CUDA if setting.cuda else time_of(event, setting) > 0


def time_of(event: torch.autograd.profiler_util.FunctionEventAvg, setting: Setting) -> float:
    """Own milliseconds."""
    return (event.self_device_time_total if setting.cuda else event.self_cpu_time_total) / 1000


def by_kind(kernels: list[tuple[str, int, float]], total: float) -> list[str]:
    sums: dict[str, float] = {}
    for name, _, taken in kernels:
        kind = next((kind for part, kind in KINDS.items() if part in name.lower()), "other")
        sums[kind] = sums.get(kind, 0.0) + taken
    return [f"{taken:9.2f} ms {100 * taken / total:5.1f} %  {kind}"
            for kind, taken in sorted(sums.items(), key=lambda item: -item[1])]


def by_kernel(kernels: list[tuple[str, int, float]], total: float) -> list[str]:
    longest = sorted(kernels, key=lambda kernel: -kernel[2])[:LINES]
    return [f"{taken:9.2f} ms {100 * taken / total:5.1f} % {count:6d} x  {name[:NAME]}"
            for name, count, taken in longest]
