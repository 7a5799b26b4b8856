"""What a training would do, before it is done: parameters, batch, steps, and memory and time from a short probe."""
import re
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..device import memory_text
from .job import TrainingJob
from .loop import STATE, Training, cpu_threads
from .report import duration
from .settings import Settings

PROBE = 2                 # steps: the first warms up, the last is timed


@dataclass(frozen=True)
class TrainingPlan:
    """Facts about a training; bytes and seconds of the probe are those of the machine it ran on."""

    trained: int              # parameters
    parameters: int           # of all networks, shared ones once
    processes: int
    images: int             # a step, all processes together
    prepared: int             # images in the data
    fixed: dict[str, int]     # bytes computed from the tensors that stay in memory, by what they are
    peak: int | None          # bytes measured, a process
    device: str
    seconds: float            # a step

    def text(self, settings: Settings) -> str:
        """For people, some lines."""
        config = settings.train
        seen = config.steps * self.images
        fixed = ", ".join(f"{name} {memory_text(size)}" for name, size in self.fixed.items() if size)
        peak = "unknown" if self.peak is None else memory_text(self.peak)
        return "\n".join((
            f"trains      {self.trained:,} of {self.parameters:,} parameters with {config.optimizer}, "
            f"learning rate {config.learning_rate:g}, precision {config.precision}",
            f"batch       {config.batch} x {self.processes} processes x {config.accumulation} accumulated = "
            f"{self.images} images a step",
            f"steps       {config.steps:,} = {seen:,} images, {seen / self.prepared:.1f} times the {self.prepared:,} "
            "prepared",
            f"memory      {peak} a process, measured on {self.device}; of these computed: {fixed}",
            f"time        {self.seconds:.3g} s a step, measured; about {duration(self.seconds * config.steps)}",
            f"writes      {settings.output.folder / STATE}, {settings.output.file}",
        ))


def make_plan(job: TrainingJob, settings: Settings) -> TrainingPlan:
    """Takes PROBE real steps in memory; writes nothing. The job's model is changed by them."""
    training = job.kind(job.model, job.objective, job.data, settings.train, job.facts)
    with cpu_threads(settings.train.threads):
        seconds = probe_seconds(training)
    averaged = [p for p in job.model.parameters() if p.requires_grad]
    second = [] if job.rival is None else [job.rival.model]
    trained = averaged + [p for network in second for p in network.parameters() if p.requires_grad]
    networks = [job.model, *second, *(part for part in vars(job.objective).values() if isinstance(part, nn.Module))]
    everything = {id(p): p for network in networks for p in network.parameters()}
    frozen = [p for p in everything.values() if not p.requires_grad]
    fixed = {"trained weights": tensor_bytes(trained), "their gradients": tensor_bytes(trained),
             "their average": len(settings.train.decays) * tensor_bytes(averaged),
             "optimizer": tensor_bytes(moments(training)), "frozen weights": tensor_bytes(frozen)}
    device = training.accelerator.device
    return TrainingPlan(sum(p.numel() for p in trained), sum(p.numel() for p in everything.values()),
                        training.accelerator.num_processes, training.total, len(job.data), fixed, peak_memory(device),
                        device_name(device), seconds)


def probe_seconds(training: Training) -> float:
    """Seconds of the last of PROBE steps."""
    device = training.accelerator.device
    for number in range(PROBE):
        began = time.perf_counter()
        training.step(number)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return time.perf_counter() - began


def moments(training: Training) -> Iterator[torch.Tensor]:
    for stepper in training.all_steppers:
        for state in stepper.state.values():
            yield from (value for value in state.values() if isinstance(value, torch.Tensor))


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def peak_memory(device: torch.device) -> int | None:
    """Most bytes this process ever held: allocated on a GPU, resident on a CPU; None where it cannot be measured."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident() if device.type == "cpu" else None


def peak_resident() -> int | None:
    """Most bytes of this program that ever lay in memory; None on Windows."""
    if sys.platform == "win32":
        return None
    status = Path("/proc/self/status")
    if status.exists():         # getrusage would also count the program that started this one
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        return 1024 * int(found[1]) if found else None
    import resource
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"the {device.type.upper()}"
