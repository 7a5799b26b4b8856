"""What distilling PixArt at full size takes in memory, computed: every allocation of a step, traced without making it.

    python benchmarks/training_memory.py                   the table: the published recipe, and what each switch saves
    python benchmarks/training_memory.py --measure         one real step on this machine beside what is computed for it

Tensors without data (torch's FakeTensorMode) go through the trainer's own objective, backward pass and optimizer; what
their storages would hold is added when one is made and taken off when it is dropped, and the highest sum counts. Not
included: what CUDA itself, its libraries and a fragmented allocator take, usually 1 to 2 GiB, and scratch space inside
kernels. Attention is the fused kind, as on a GPU.
"""
import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.instruments.held import GIB, Held  # noqa: E402
from pixart.config import VARIANTS  # noqa: E402
from pixart.model.controlnet import Controlled, PixArtControlNet  # noqa: E402
from pixart.model.transformer import PixArtTransformer  # noqa: E402
from pixart.train.average import averaged_copy, update_average  # noqa: E402
from pixart.train.data import Batch  # noqa: E402
from pixart.train.lcm_lora import ConsistencyLora  # noqa: E402
from pixart.train.loop import set_recompute  # noqa: E402
from pixart.train.loop_config import LoopConfig  # noqa: E402
from pixart.train.lora import add_lora  # noqa: E402
from pixart.train.objectives import Consistency, ControlDiffusion  # noqa: E402
from pixart.train.optimizers import optimizers  # noqa: E402
from pixart.train.plan import peak_resident  # noqa: E402

DTYPES = {"fp32": torch.float32, "16 bits": torch.bfloat16}     # bf16 where the recipe has fp16: as many bytes


@dataclass(frozen=True)
class Case:
    """A training whose memory is computed."""

    method: str = "lcm"                 # or "lcm-lora", "controlnet"
    batch: int = 12
    side: int = 1024                    # pixels
    frozen: str = "16 bits"             # teacher, or base
    autocast: bool = True
    recompute: bool = True
    eight_bit: bool = False             # moments of Adam: subtracted, as bitsandbytes cannot be traced
    depth: int = 28


class Captions:
    """Stands for the prepared data, of which only the empty caption is needed."""

    def without_caption(self, batch: Batch, rows: Any = None) -> Batch:
        return replace(batch, context=batch.context.clone())


def networks(case: Case) -> tuple[nn.Module, Any]:
    """What is trained, and its objective."""
    data: Any
    config, data = replace(VARIANTS["alpha-1024"], depth=case.depth), Captions()
    if case.method == "lcm-lora":
        return without_data(lambda: add_lora(PixArtTransformer(config, dtype=DTYPES[case.frozen]), 32, 8.0)), \
            ConsistencyLora(data)
    base = PixArtTransformer(config, dtype=DTYPES[case.frozen]).requires_grad_(False)
    if case.method == "lcm":
        return PixArtTransformer(config).train(), Consistency(data, base)
    return Controlled(base, PixArtControlNet(config, min(13, case.depth - 1))), ControlDiffusion(data)


def without_data(make: Callable[[], nn.Module]) -> nn.Module:
    """A network made with data that is then dropped: peft's layers cannot be made without."""
    with _disable_current_modes():
        model = make()
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype),
                                                        parameter.requires_grad)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else torch.empty(buffer.shape, dtype=buffer.dtype)
    return model


def batch_of(case: Case) -> Batch:
    sides, count = (case.batch, 4, case.side // 8, case.side // 8), case.batch
    return Batch(torch.zeros(sides), torch.zeros(count, 120, 4096), torch.ones(count, 120, dtype=torch.bool),
                 torch.full((count, 2), float(case.side)), torch.ones(count), torch.zeros(sides))


def step(model: nn.Module, average: nn.Module, objective: Any, steppers: list, batch: Batch, case: Case) -> None:
    """As `pixart.train.loop.Training.step`, without accelerate."""
    with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast):
        loss = objective(model, average, batch, torch.Generator())
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 0.01)
    for stepper in steppers:
        stepper.step()
        stepper.zero_grad()
    update_average(average, model, 0.95)


def run(case: Case, steps: int = 2) -> tuple[nn.Module, list]:
    model, objective = networks(case)
    average = averaged_copy(model)
    set_recompute(model.train(), case.recompute)
    steppers = optimizers(model, LoopConfig(steps=1, batch=1, learning_rate=1e-5))
    for _ in range(steps):                      # Adam has its moments from the second step on
        step(model, average, objective, steppers, batch_of(case), case)
    return model, steppers


@dataclass(frozen=True)
class Memory:
    """Bytes of a training by purpose; the rest of the peak is activations."""

    peak: int
    trained: int                # parameters
    weights: int                # of all networks, the average among them
    moments: int

    @property
    def activations(self) -> int:
        """Besides weights, moments and gradients."""
        return self.peak - self.weights - self.moments - 4 * self.trained


def computed(case: Case) -> Memory:
    with FakeTensorMode(allow_non_fake_inputs=True), Held() as held:
        model, steppers = run(case)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
        if case.method == "lcm":
            frozen = sum(p.numel() for p in model.parameters())         # the teacher
        peak, moments = held.peak, 8 * trained
    if case.eight_bit:
        peak, moments = peak - 6 * trained, 2 * trained
    return Memory(peak, trained, 8 * trained + DTYPES[case.frozen].itemsize * frozen, moments)


TABLE = (
    ("full student, batch 12 (published recipe)", Case()),
    ("the same without recomputation, batch 1", Case(batch=1, recompute=False)),
    ("with recomputation, batch 1", Case(batch=1)),
    ("teacher in fp32", Case(frozen="fp32")),
    ("moments of Adam in 8 bits", Case(eight_bit=True)),
    ("512 px, batch 12", Case(side=512)),
    ("LCM-LoRA, rank 32, batch 16", Case(method="lcm-lora", batch=16)),
    ("ControlNet, 13 blocks, batch 4", Case(method="controlnet", batch=4)),
    ("ControlNet, 13 blocks, 512 px, batch 12", Case(method="controlnet", batch=12, side=512)),
)


def table(depth: int) -> None:
    print("| 1024 px unless said | peak | weights | gradients | moments | activations | trained parameters |")
    print("|---" * 7 + "|")
    for title, case in TABLE:
        found = computed(replace(case, depth=depth))
        parts = (found.peak, found.weights, 4 * found.trained, found.moments, found.activations)
        cells = " | ".join(f"{size / GIB:.1f} GiB" for size in parts)
        print(f"| {title} | {cells} | {found.trained / 1e6:.0f} M |", flush=True)


def measure(case: Case) -> None:
    """A real step, in a process that does nothing else: what it held at most, beside what is computed for it."""
    before = peak_resident() or 0
    started = time.perf_counter()
    run(case, steps=1)
    seconds = time.perf_counter() - started
    most = peak_resident() or 0
    print(f"measured: {most / GIB:.2f} GiB resident at most, {before / GIB:.2f} GiB of them before; {seconds:.0f} s")
    with FakeTensorMode(allow_non_fake_inputs=True), Held() as held:
        run(case, steps=1)
        print(f"computed for the same step: {held.peak / GIB:.2f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="run one step for real, in float32 on the CPU")
    parser.add_argument("--side", type=int, default=1024, help="pixels, of --measure")
    parser.add_argument("--batch", type=int, default=1, help="images, of --measure")
    parser.add_argument("--depth", type=int, default=28, help="blocks")
    args = parser.parse_args()
    if args.measure:
        measure(Case(batch=args.batch, side=args.side, frozen="fp32", autocast=False, depth=args.depth))
    else:
        table(args.depth)


if __name__ == "__main__":
    main()
