"""Images of a group of tasks, made by the pipeline: as bytes of PNG files, or why there is none."""
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..dtypes import dtype_or_auto
from ..mini import SHIPPED
from ..weights import CheckpointError
from .tasks import Task

if TYPE_CHECKING:
    from ..generation.pipeline import Pipeline

# Errors of one image, after which the next may still succeed. Missing files and memory concern all of them.
OF_ONE = (ValueError, FloatingPointError)


@dataclass(frozen=True)
class GenerationSettings:
    """How all images are generated; plain values, so that they can be sent to other processes. Paths are absolute."""

    model: str | None = None
    vae: str | None = None
    t5: str | None = None
    variant: str = "auto"
    loras: tuple[tuple[str, float], ...] = ()
    dtype: str = "auto"             # auto, fp32, bf16, fp16
    bits: int | None = None
    sampler: str = "lcm"
    steps: int | None = None
    guidance: float | None = None
    rule: str | None = None
    nag: float = 1.0                # scale of normalized attention guidance
    long: str = "truncate"          # see `encode_long`
    inner_ends: bool = False
    compile: bool = False
    metadata: bool = True           # whether files carry how they were made

    @property
    def files(self) -> dict[str, Path]:
        """Paths of the files that are read, by their kind."""
        named = {"model": self.model or SHIPPED.student, "vae": self.vae or SHIPPED.vae, "t5": self.t5 or SHIPPED.t5}
        return {name: Path(path) for name, path in named.items()} | {
            f"lora {number}": Path(path) for number, (path, _) in enumerate(self.loras, 1)}


@dataclass(frozen=True)
class GeneratedTask:
    """A task with its image, or its problem. notice: what of the prompt was not encoded, "" for nothing."""

    task: Task
    png: bytes | None
    problem: str = ""
    notice: str = ""


def generate_group(settings: GenerationSettings, device: str | None, group: Sequence[Task]) -> list[GeneratedTask]:
    """All images at once; one by one where that fails, so that a bad prompt fails alone.

    Raises what concerns all tasks: OSError, ImportError, MemoryError, and CheckpointError for a file that is wrong.
    """
    pipe = opened(settings, device)
    try:
        return generate_together(pipe, settings, group)
    except CheckpointError:
        raise
    except OF_ONE as error:
        if len(group) == 1:
            return [GeneratedTask(group[0], None, str(error))]
    return [result for task in group for result in generate_group(settings, device, [task])]


@lru_cache(maxsize=1)
def opened(settings: GenerationSettings, device: str | None) -> "Pipeline":
    """The pipeline of these settings, opened once a process."""
    from ..generation.pipeline import Pipeline

    dtype = dtype_or_auto(settings.dtype)
    return Pipeline.open(settings.model, settings.vae, settings.t5, device, dtype, variant=settings.variant,
                         bits=settings.bits, loras=settings.loras, compile=settings.compile)


def generate_together(pipe: "Pipeline", settings: GenerationSettings, group: Sequence[Task]) -> list[GeneratedTask]:
    """Tasks of one size and negative prompt, whose seeds follow each other."""
    from ..files.images import write_image

    first = group[0]
    prompts = pipe.encode([task.prompt for task in group], None, settings.long, settings.inner_ends)
    images = pipe(prompts, first.negative, steps=settings.steps, seed=first.seed, width=first.width,
                  height=first.height, sampler=settings.sampler, guidance=settings.guidance, rule=settings.rule,
                  batch=len(group), nag=settings.nag)
    results = []
    for task, pixels, report, facts in zip(group, images.pixels, images.reports, images.facts):
        file = io.BytesIO()
        write_image(file, pixels, "PNG", facts.parameters if settings.metadata else None)
        results.append(GeneratedTask(task, file.getvalue(), notice="; ".join(report.notices)))
    return results
