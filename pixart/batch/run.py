"""A list of prompts from beginning to end: what is there is kept, the rest is generated, and a record is written."""
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..files.atomic import replacing
from ..files.claim import claimed
from ..progress import Progress
from ..weights import CheckpointError, checked_entries, read_json
from ..weights.fingerprint import weights_fingerprint
from ..weights.settings import Check, optional, table, text, whole
from .generate import GeneratedTask, GenerationSettings
from .store import ImageFiles, Shards, Store, remove_leftovers, task_facts
from .tasks import Task, groups_of, tasks_digest

logger = logging.getLogger(__name__)

RECORD, RESULTS, FAILURES = "batch.json", "results.jsonl", "failures.jsonl"
BATCH_FIELDS: dict[str, Check] = {"settings": table, "weights": table, "batch": whole(1, 1 << 30),
                                  "shard": optional(whole(1, 1 << 30)), "tasks": whole(0, 1 << 40), "digest": text}
Workers = Callable[[Sequence[Sequence[Task]]], Iterator[list[GeneratedTask]]]


@dataclass
class Summary:
    """What a run did. seconds: from its beginning, the loading of models included."""

    total: int
    there: int                  # before it began
    generated: int = 0
    failed: dict[str, str] = field(default_factory=dict)        # name of the task -> problem
    seconds: float = 0.0

    @property
    def line(self) -> str:
        rate = f", {60 * self.generated / self.seconds:.1f} a minute" if self.generated else ""
        there = f"; {self.there} were there" if self.there else ""
        failed = f"; {len(self.failed)} failed, see {FAILURES}" if self.failed else ""
        return f"{self.generated} images in {self.seconds:.1f} s{rate}{there}{failed}"


def run_batch(tasks: Sequence[Task], settings: GenerationSettings, out: str | Path, workers: Workers, batch: int = 4,
              shard: int | None = None, progress: Progress | None = None) -> Summary:
    """Generate what is missing in the folder `out`, each task once; may be killed and called again at any time.

    workers: given groups of tasks, yields their results in any order. batch: images generated at once. shard: images a
    tar file; None for PNG files. Only this process writes. At the end results.jsonl holds a line for every image and
    failures.jsonl one for every failure, which the next call tries again. Raises ValueError where the folder holds
    results of something else.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with claimed(out):
        require_same(out, tasks, settings, batch, shard)
        remove_leftovers(out)
        store: Store = ImageFiles(out, tasks) if shard is None else Shards(out, tasks, shard)
        groups = [group for group in groups_of(tasks, batch) if not all(map(store.has, group))]
        summary = Summary(len(tasks), sum(map(store.has, tasks)))
        try:
            generate_all(groups, workers, store, summary, progress)
        finally:
            summary.seconds = time.monotonic() - began
            write_lines(out / FAILURES, [{"name": name, "problem": why} for name, why in summary.failed.items()])
        write_lines(out / RESULTS, list(results(out, tasks, store)))
    return summary


def generate_all(groups: Sequence[Sequence[Task]], workers: Workers, store: Store, summary: Summary,
             progress: Progress | None) -> None:
    if not groups:
        return
    said: set[str] = set()
    for group in workers(groups):
        for result in group:
            tell_once(result, said)
            if result.png is None:
                summary.failed[result.task.name] = result.problem
            elif not store.has(result.task):        # beside others that were missing
                store.put(result.task, result.png)
                summary.generated += 1
        if progress is not None:
            progress("images", summary.there + summary.generated + len(summary.failed), summary.total)


def tell_once(result: GeneratedTask, said: set[str]) -> None:
    """Log what of a prompt was not encoded; once for all of its seeds."""
    if result.notice and result.task.prompt not in said:
        said.add(result.task.prompt)
        logger.warning("%s: %s", result.task.name, result.notice)


def require_same(out: Path, tasks: Sequence[Task], settings: GenerationSettings, batch: int, shard: int | None) -> None:
    """Refuse a folder of other prompts, settings or weights, then record these; a list for single files may have grown
    at its end. What a first run recorded that made no image is replaced."""
    path = out / RECORD
    record = {"settings": asdict(settings), "weights": fingerprints(settings), "batch": batch, "shard": shard}
    begun = any(next(out.glob(pattern), None) for pattern in ("*.png", "*.tar", "unpacked/*.png"))
    if begun and not path.is_file():
        raise ValueError(f"this folder holds images of something else; choose an empty one: {out}")
    if begun:
        before = checked_record(path)
        before["settings"] = asdict(GenerationSettings()) | before["settings"]         # written by a version with fewer
        before["weights"] = record["weights"] | before.get("weights", {})         # by one that did not record them
        changed = [name for name, value in plain_record(record).items() if before.get(name) != value]
        if changed:
            difference = first_difference(before, plain_record(record))
            raise ValueError(f"this folder was begun with other settings ({difference}); use those, or another "
                             f"folder: {out}")
        count = before["tasks"]
        if tasks_digest(tasks[:count]) != before["digest"] or (shard is not None and count != len(tasks)):
            raise ValueError(f"this folder was begun with another list of {count} images; prompts may only be added "
                             f"at its end, and none to shards: {out}")
    with replacing(path) as beside:
        beside.write_text(json.dumps({**plain_record(record), "tasks": len(tasks), "digest": tasks_digest(tasks)},
                                     indent=1),
                          encoding="utf-8")


def checked_record(path: Path) -> dict[str, Any]:
    """What the folder was begun with. CheckpointError, a ValueError, for a damaged file."""
    before = read_json(path)
    known = checked_entries(before, BATCH_FIELDS, path, path.name)
    lacking = sorted(BATCH_FIELDS.keys() - known.keys() - {"weights"})
    if lacking:
        raise CheckpointError(path, f"{path.name} lacks {lacking[0]}", "the record of this folder",
                              "Choose an empty folder.")
    return before


def plain_record(record: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    return json.loads(json.dumps(record))


def first_difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first value that changed, in words."""
    flat = [{**values, **values["settings"], **values["weights"]} for values in (before, now)]
    name = next(key for key in flat[1] if key not in ("settings", "weights") and flat[0].get(key) != flat[1][key])
    return f"{name} was {flat[0].get(name)}, is {flat[1][name]}"


def fingerprints(settings: GenerationSettings) -> dict[str, str | None]:
    """Fingerprints of the files that are read, which tell them from others of the same name."""
    return {f"{name} file": weights_fingerprint(path) for name, path in settings.files.items()}


def results(out: Path, tasks: Sequence[Task], store: Store) -> Iterator[dict[str, object]]:
    """A line for each image that is there, in the order of the list."""
    for task in tasks:
        if store.has(task):
            path = store.file(task)
            own = {"sha256": hashlib.sha256((out / path).read_bytes()).hexdigest()} if path.endswith(".png") else {}
            yield {"name": task.name, "file": path, **task_facts(task), **own}


def write_lines(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """JSON lines, whole or not at all; no file where there is none."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as beside:
        beside.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
