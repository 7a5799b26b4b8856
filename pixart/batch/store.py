"""Where results lie: as PNG files, or packed in tar files for WebDataset. What is stored there is complete."""
import io
import json
import re
import tarfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from ..files.atomic import replacing
from .tasks import Task

OWN_PART = re.compile(r"\.(\d{6,}--?\d+\.png|shard-\d+\.tar|(batch\.json|(results|failures)\.jsonl))\.\d+-\d+\.part")


class Store(Protocol):
    """Results of tasks."""

    def has(self, task: Task) -> bool: ...

    def put(self, task: Task, png: bytes) -> None:
        """Store all of it or nothing, even if the process is killed."""

    def file(self, task: Task) -> str:
        """Where a result lies, below the folder."""


class ImageFiles:
    """One PNG a task in the folder."""

    def __init__(self, folder: Path, tasks: Sequence[Task]) -> None:
        self.folder = folder
        self._there = {path.name for path in folder.glob("*.png")}

    def has(self, task: Task) -> bool:
        return self.file(task) in self._there

    def put(self, task: Task, png: bytes) -> None:
        with replacing(self.folder / self.file(task)) as beside:
            beside.write_bytes(png)
        self._there.add(self.file(task))

    def file(self, task: Task) -> str:
        return f"{task.name}.png"


class Shards:
    """Tar files of `size` tasks each; images wait in the folder `unpacked` until their shard is complete.

    A sample is `name.png` with `name.json` (prompt, negative, seed, width, height).
    """

    def __init__(self, folder: Path, tasks: Sequence[Task], size: int) -> None:
        self.folder, self.size = folder, size
        (folder / "unpacked").mkdir(exist_ok=True)
        self._unpacked = ImageFiles(folder / "unpacked", tasks)
        self._shards = [tasks[start:start + size] for start in range(0, len(tasks), size)]
        self._number = {task.name: number for number, shard in enumerate(self._shards) for task in shard}
        for number in range(len(self._shards)):     # what a kill left between the last image and the shard
            self._pack(number)

    def has(self, task: Task) -> bool:
        return self._path(self._number[task.name]).is_file() or self._unpacked.has(task)

    def put(self, task: Task, png: bytes) -> None:
        self._unpacked.put(task, png)
        self._pack(self._number[task.name])

    def file(self, task: Task) -> str:
        path = self._path(self._number[task.name])
        return path.name if path.is_file() else f"unpacked/{self._unpacked.file(task)}"

    def _path(self, number: int) -> Path:
        return self.folder / f"shard-{number:06}.tar"

    def _pack(self, number: int) -> None:
        """Write a shard whose images are all there, then remove these."""
        shard, path = self._shards[number], self._path(number)
        if not path.is_file():
            if not all(map(self._unpacked.has, shard)):
                return
            with replacing(path) as beside, tarfile.open(beside, "w", format=tarfile.USTAR_FORMAT) as tar:
                for task in shard:
                    add_member(tar, f"{task.name}.png", (self.folder / "unpacked" / f"{task.name}.png").read_bytes())
                    add_member(tar, f"{task.name}.json", json.dumps(task_facts(task), sort_keys=True).encode())
        for task in shard:
            (self.folder / "unpacked" / f"{task.name}.png").unlink(missing_ok=True)


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Without owner and time, so that the same images make the same file."""
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def task_facts(task: Task) -> dict[str, object]:
    return {key: value for key, value in asdict(task).items() if key != "name"}


def remove_leftovers(folder: Path) -> None:
    """What a killed run left half-written, and nothing of other programs."""
    for left in [*folder.glob(".*.part"), *folder.glob("unpacked/.*.part")]:
        if OWN_PART.fullmatch(left.name):
            left.unlink()
