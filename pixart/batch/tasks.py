"""What there is to generate: a task for each prompt and seed, in groups that are generated at once."""
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from ..files.prompts import LAST_SEED, PromptLine


@dataclass(frozen=True)
class Task:
    """One image. name: of its file, without ending."""

    name: str
    prompt: str
    negative: str
    seed: int
    width: int          # pixels
    height: int


def tasks_of(lines: Sequence[PromptLine], seeds: Sequence[int] | None, first_seed: int, width: int, height: int
             ) -> list[Task]:
    """Tasks in the order of the list.

    A line with a seed of its own is one task; others are one for each of `seeds`, or without these for one seed, which
    counts up from `first_seed` line by line. width and height: for lines that give none.
    """
    tasks = []
    for number, line in enumerate(lines):
        own = [line.seed] if line.seed is not None else seeds if seeds is not None else [first_seed + number]
        for seed in dict.fromkeys(own):
            if not 0 <= seed <= LAST_SEED:
                raise ValueError(f"seed {seed} of line {line.line} does not fit into 64 bits")
            tasks.append(Task(f"{line.line:06}-{seed}", line.prompt, line.negative, seed, line.width or width,
                              line.height or height))
    return tasks


def groups_of(tasks: Sequence[Task], most: int) -> Iterator[tuple[Task, ...]]:
    """Tasks that follow each other with rising seeds and are of one size, up to `most` together.

    Always the same groups for the same list, so that a resumed run generates an image beside the same others:
    the last bit of a product of matrices may depend on how many rows it has.
    """
    group: list[Task] = []
    for task in tasks:
        if group and (len(group) == most or not follows(group[-1], task)):
            yield tuple(group)
            group = []
        group.append(task)
    if group:
        yield tuple(group)


def follows(before: Task, task: Task) -> bool:
    return (before.seed + 1, before.width, before.height, before.negative) == (task.seed, task.width, task.height,
                                                                               task.negative)


def tasks_digest(tasks: Sequence[Task]) -> str:
    """Differs between different lists."""
    return hashlib.sha256(json.dumps([asdict(task) for task in tasks]).encode()).hexdigest()
