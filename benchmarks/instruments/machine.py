"""Facts about the machine that every figure belongs to."""
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("torch", "triton", "transformers", "bitsandbytes", "diffusers", "accelerate", "peft", "safetensors")


def machine(device: str) -> dict[str, str]:
    """Card, driver, versions, processor, command."""
    facts = {"command": "python -m benchmarks " + " ".join(sys.argv[1:]), "card": card(device)}
    facts["versions"] = ", ".join(f"{name} {installed(name)}" for name in PACKAGES)
    facts["python"] = f"{platform.python_version()} on {platform.platform()}, {cores()} cores"
    return facts


def card(device: str) -> str:
    if device == "cpu":
        return f"none; processor: {processor()}, {torch.get_num_threads()} threads"
    properties = torch.cuda.get_device_properties(0)
    return (f"{properties.name}, {properties.total_memory / 2 ** 30:.1f} GiB, {properties.multi_processor_count} "
            f"multiprocessors, driver {driver()}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")


def processor() -> str:
    """Its name and matrix units, and the load of the machine at the start."""
    import os
    info = Path("/proc/cpuinfo")
    found = info.read_text(encoding="utf-8") if info.exists() else ""
    name = next((line.partition(":")[2].strip() for line in found.splitlines() if line.startswith("model name")),
                platform.processor())
    units = [unit for unit in ("amx_bf16", "avx512f", "avx2") if f" {unit} " in found] or ["no wide units known"]
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{name} ({', '.join(units)}), {cores()} cores{load}"


def driver() -> str:
    try:
        asked = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
                               capture_output=True, text=True, timeout=20)
        return asked.stdout.strip().splitlines()[0]
    except (OSError, IndexError, subprocess.TimeoutExpired):
        return "unknown"


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def cores() -> int:
    import os
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
