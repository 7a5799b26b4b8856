"""The stages of the campaign in order of importance, and how one of them is run in a process of its own.

A stage is a module of this package with `cases(setting)`: name -> function(setting, notes). Cases run in order, a
failing one never stops the next, and none starts when the stage's time is over.
"""
import importlib
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..instruments.cases import carry_out
from ..instruments.notes import Notes
from ..instruments.setting import Setting


@dataclass(frozen=True)
class Stage:
    """Stages of one round run in parallel where the card has room for it: they time nothing that is quoted."""

    name: str
    title: str
    round: int
    share: float                # of the campaign's time, that of the round's longest stage counts


STAGES = (
    Stage("models", "correctness of the networks", 1, 0.25),
    Stage("images", "correctness of images and text", 1, 0.25),
    Stage("trainers", "correctness of the trainers", 1, 0.25),
    Stage("text", "T5-XXL and the whole job", 1, 0.25),
    Stage("memory", "peak memory", 1, 0.25),
    Stage("computed", "peak memory, computed", 1, 0.25),
    Stage("latency", "speed, eager", 2, 0.25),
    Stage("compiled", "speed, compiled", 3, 0.22),
    Stage("host", "the host on CUDA", 4, 0.28),
)


def perform(names: Sequence[str], rehearse: bool, work: Path | None, seconds: float) -> int:
    """Run stages here; their results go to standard output, a line of JSON each, everything else to stderr."""
    until = time.monotonic() + seconds
    with results_apart() as write, tempfile.TemporaryDirectory() as spare:
        setting = Setting("cpu" if rehearse else "cuda", rehearse, work or Path(spare), until)
        for name in names:
            begin(name, setting, Notes(write, name))
    return 0


def begin(name: str, setting: Setting, notes: Notes) -> None:
    try:
        found = importlib.import_module(f".{name}", __package__).cases(setting)
    except Exception as error:      # that a stage cannot begin is a result
        traceback.print_exc()
        notes.failed(f"stage {name}", error)
        return
    carry_out(found, setting, notes)


@contextmanager
def results_apart() -> Iterator[Callable[[str], None]]:
    """Standard output for results alone: libraries that print get stderr."""
    channel = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    with channel:
        yield lambda line: print(line, file=channel, flush=True)
