"""Generation that costs nothing, for what surrounds it: the bytes depend on the task alone."""
import hashlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from pixart.batch.generate import GeneratedTask, GenerationSettings
from pixart.batch.tasks import Task
from pixart.weights import CheckpointError


def generate(settings: GenerationSettings, device: str | None, group: Sequence[Task]) -> list[GeneratedTask]:
    """Takes a few milliseconds. A prompt `bad` fails."""
    time.sleep(0.004)
    return [GeneratedTask(task, None, "no image of that") if task.prompt == "bad" else
            GeneratedTask(task, hashlib.sha256(repr(task).encode()).digest() * 3000) for task in group]


def dies_once(settings: GenerationSettings, device: str | None, group: Sequence[Task]) -> list[GeneratedTask]:
    """The first process that comes to the prompt `fatal` ends at once. Its negative prompt is the place of a mark."""
    for task in group:
        mark = Path(task.negative)
        if task.prompt == "fatal" and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return generate(settings, device, group)


def wrong_file(settings: GenerationSettings, device: str | None, group: Sequence[Task]) -> list[GeneratedTask]:
    raise CheckpointError("vae.safetensors", "it looks like a LoRA", "a VAE", "Choose another file.")


def cut_prompt(settings: GenerationSettings, device: str | None, group: Sequence[Task]) -> list[GeneratedTask]:
    return [GeneratedTask(done.task, done.png, notice="1 word cut: end") for done in generate(settings, device, group)]


def always_dies(settings: GenerationSettings, device: str | None, group: Sequence[Task]) -> list[GeneratedTask]:
    if any(task.prompt == "fatal" for task in group):
        os.kill(os.getpid(), signal.SIGKILL)
    return generate(settings, device, group)
