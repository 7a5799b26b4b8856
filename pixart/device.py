"""Devices: which one to use, how much memory is free there, and how to recognise that it ran out."""
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

DEVICE_KINDS = ("cpu", "cuda", "mps", "xpu")
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
PLANNED_SHARE = 0.9         # of the free memory to plan with
# Messages of torch, cuBLAS, cuDNN and DirectML that come as a plain RuntimeError; compared in lower case.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "status_alloc_failed", "could not allocate tensor",
                 "unable to find a valid cudnn algorithm")
USUAL_FREE = 4 << 30        # bytes assumed to be free where the system does not say


def best_device() -> str:
    """The kind of the fastest device of this machine: cuda, xpu, mps or cpu."""
    return next(kind for kind in ("cuda", "xpu", "mps", "cpu") if _count(kind))


def checked_device(name: str | torch.device | None) -> torch.device:
    """The device of this name, such as "cpu" or "cuda:1", or the best one if there is no name.

    ValueError where there is no such device here.
    """
    try:
        device = torch.device(best_device() if name is None else name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{str(name)!r} is not a device; use {', '.join(DEVICE_KINDS)}, or for example "
                         "cuda:1") from error
    count = _count(device.type)
    if (device.index or 0) >= count:
        there = f"this torch sees {count} of them" if count else "this torch sees none"
        raise ValueError(f"device {str(name)!r} was asked for, but {there}; the best one here is {best_device()}")
    return device


def _count(kind: str) -> int:
    """Devices of one kind."""
    if kind == "cuda":
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "xpu":
        return torch.xpu.device_count() if hasattr(torch, "xpu") and torch.xpu.is_available() else 0
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    return int(kind == "cpu")


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be allocated there, including torch's cached ones; None if unknown."""
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    if device.type == "cpu":
        known = [size for size in (_machine_free(), _container_free()) if size is not None]
        return min(known, default=None)
    return None


def _machine_free() -> int | None:
    """Linux's own estimate; None on other systems, where it takes another package."""
    if not MEMINFO.is_file():
        return None
    line = next(line for line in MEMINFO.read_text().splitlines() if line.startswith("MemAvailable"))
    return 1024 * int(line.split()[1])


def _container_free() -> int | None:
    """Within the limit of a container (cgroup 2), where there is one."""
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if not limit.is_file() or not used.is_file() or not limit.read_text().strip().isdigit():
        return None
    return max(0, int(limit.read_text()) - int(used.read_text()))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch, or of Python, says that memory ran out."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in OUT_OF_MEMORY)


@contextmanager
def memory_advice(device: torch.device, what: str, advice: str) -> Iterator[None]:
    """Turn torch's out-of-memory error into a MemoryError that says what to do."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(f"not enough memory on {device} while {what}; {advice}") from error


def memory_text(size: float) -> str:
    """A number of bytes as text, in GiB or MiB."""
    return f"{size / 2 ** 30:.2f} GiB" if size >= 2 ** 27 else f"{size / 2 ** 20:.1f} MiB"


def release(device: torch.device) -> None:
    """Give unused cached memory back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif device.type == "xpu":
        torch.xpu.empty_cache()
