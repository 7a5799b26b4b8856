"""Cost of an image: passes through the network, multiply-accumulates, time."""
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, mm_flop, sdpa_flop

from ...model.transformer import PixArtTransformer
from ...pt_dit.transformer import PTDiT
from .batches import BenchImages
from .bench import Bench
from .methods import GenerationMethod


@dataclass(frozen=True)
class Cost:
    """Cost of one image, without text encoding and loading."""

    passes: float            # through the transformer; a guided step takes two
    macs: float              # multiply-accumulate operations of all matrix products, attention and convolutions
    milliseconds: float      # wall-clock time per image, decoding and noise included
    machine: str             # device, threads and images at a time


@dataclass
class Passes:
    """Rows that went through the transformer."""

    rows: int = 0


@contextmanager
def counted_passes() -> Iterator[Passes]:
    """Counts the rows of every call of a PixArt transformer or a PT-DiT, wherever it is made."""
    passes = Passes()

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, PixArtTransformer | PTDiT) and isinstance(output, Tensor):
            passes.rows += len(output)

    handle = nn.modules.module.register_module_forward_hook(count)
    try:
        yield passes
    finally:
        handle.remove()


def _attention(query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **named: Any) -> int:
    return sdpa_flop(query, key, value)


def counted_flops() -> FlopCounterMode:
    """torch's counter, extended by the CPU attention kernel and integer matrix products, which it leaves out."""
    ops = torch.ops.aten
    return FlopCounterMode(display=False, custom_mapping={
        ops._scaled_dot_product_flash_attention_for_cpu: _attention, ops._int_mm: mm_flop})


def count(method: GenerationMethod, bench: Bench, probe: int = 1) -> tuple[float, float]:
    """Passes and multiply-accumulate operations of an image, on average over the first `probe` prompts.

    The first image is a square one. More than one are only needed for methods whose work depends on the image, or
    to count the other sizes too. One is generated uncounted before: weights are read, and LoRAs merged, only once.
    Counting takes some 0.1 s a step. Twice the operations are what others call FLOPs.
    """
    method.generate(bench.first(1))
    with counted_passes() as passes, counted_flops() as flops:
        made = len(method.generate(bench.first(probe)))
    return passes.rows / made, flops.get_total_flops() / 2 / made


def timed(method: GenerationMethod, bench: Bench) -> tuple[BenchImages, float]:
    """The images, and milliseconds per image."""
    wait(bench.device)
    started = time.perf_counter()
    images = method.generate(bench)
    wait(bench.device)
    return images, 1000 * (time.perf_counter() - started) / len(images)


def machine(bench: Bench) -> str:
    """Device, threads and batch, which the time of an image depends on."""
    device = bench.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return f"{name}{threads}, batch {bench.batch}, torch {torch.__version__}"


def wait(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
