"""Random numbers of a training step that do not depend on how its images are split over processes."""
from collections.abc import Callable

import torch
from torch import Tensor


class StepGenerator(torch.Generator):
    """The one source of randomness of a training step, the same on every process.

    A process that works on `rows` of the step's `total` images draws for all of them and keeps its own.
    """

    rows: slice = slice(None)
    total: int | None = None
    step: int = 0               # of the training, from 0


def generator_for(seed: int, step: int, rows: slice = slice(None), total: int | None = None,
                  device: torch.device | str = "cpu") -> StepGenerator:
    """What a step draws follows from (seed, step) alone, so a resumed run repeats the uninterrupted one.

    device: where the numbers are drawn. Each kind of device draws others from the same seed.
    """
    generator = StepGenerator(device)
    generator.manual_seed(seed * 1_000_003 + step)
    generator.rows, generator.total, generator.step = rows, total, step
    return generator


def rows_of(generator: torch.Generator, count: int) -> tuple[slice, int]:
    """Rows of the `count` images at hand, and how many the step has: all of them, unless a StepGenerator knows more."""
    if isinstance(generator, StepGenerator) and generator.total is not None:
        return generator.rows, generator.total
    return slice(None), count


def draw_rows(make: Callable[..., Tensor], shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """make(shape, generator=generator) on the generator's device, one row an image.

    On the CPU (the default everywhere) every device trains alike. make: torch.randn, torch.rand or the like. shape:
    that of the images at hand; with a StepGenerator which was told `total`, these are its `rows`.
    """
    rows, total = rows_of(generator, shape[0])
    return make((total, *shape[1:]), generator=generator, device=generator.device)[rows]


def on_cpu(generator: torch.Generator) -> torch.Generator:
    """The generator itself, or one on the CPU with its seed: for picking rows of files without asking the device."""
    if generator.device.type == "cpu":
        return generator
    beside = StepGenerator()
    beside.manual_seed(generator.initial_seed())
    if isinstance(generator, StepGenerator):
        beside.rows, beside.total, beside.step = generator.rows, generator.total, generator.step
    return beside
