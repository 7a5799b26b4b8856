"""Random numbers of a training step that do not depend on how its pictures are split over processes."""
from collections.abc import Callable

import torch
from torch import Tensor


class StepGenerator(torch.Generator):
    """The one source of randomness of a training step, the same on every process.

    A process that works on `rows` of the step's `total` pictures draws for all of them and keeps its own.
    """

    rows: slice = slice(None)
    total: int | None = None


def generator_for(seed: int, step: int, rows: slice = slice(None), total: int | None = None) -> StepGenerator:
    """What a step draws follows from (seed, step) alone, so a resumed run repeats the uninterrupted one."""
    generator = StepGenerator()
    generator.manual_seed(seed * 1_000_003 + step)
    generator.rows, generator.total = rows, total
    return generator


def draw(make: Callable[..., Tensor], shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """make(shape, generator=generator) on the CPU, one row a picture, so that every device trains alike.

    make: torch.randn, torch.rand or the like. shape: that of the pictures at hand; with a StepGenerator which was told
    `total`, these are its `rows`.
    """
    total = getattr(generator, "total", None)
    if total is None:
        return make(shape, generator=generator)
    return make((total, *shape[1:]), generator=generator)[generator.rows]
