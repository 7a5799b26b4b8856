"""Queue workflows, follow each to its end, fetch what it made."""
import time
import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ..files.atomic import replacing
from ..progress import Progress
from .errors import ClientError, Failed, Interrupted, Unreachable
from .graph import Graph, node_label
from .listen import Listener
from .server import Server

LOOK_SECONDS = 1.0              # the history is asked this often, whatever the websocket says
ENDS = ("execution_success", "execution_error", "execution_interrupted")
FORGOTTEN = ("the server no longer has the prompt: it was deleted from the queue, or the server was restarted. It "
             "was not queued again")


@dataclass(frozen=True)
class WorkflowOutcome:
    """What became of the workflow with this number: the files that were fetched, or the problem."""

    number: int                 # in the order of the workflows, from 0
    prompt_id: str
    files: list[Path] = field(default_factory=list)
    problem: ClientError | None = None


def run_workflows(server: Server, graphs: Sequence[Graph], out: str | Path, progress: Progress | None = None
                  ) -> Generator[WorkflowOutcome, None, None]:
    """Queue all of them, and yield what became of each as it ends; its files lie in the folder `out` by then.

    Each is queued once, also when the connection is lost. progress: told (node at work, done, total). Raises Refused
    before anything runs, Unreachable when the server is away for longer than its patience. When the caller stops early,
    by an interruption too, what still waits is taken out of the queue and what runs is interrupted.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    client_id = uuid.uuid4().hex
    waiting: dict[str, int] = {}
    with Listener(server.url, client_id) as listener:
        try:
            for number, graph in enumerate(graphs):
                prompt_id = str(uuid.uuid4())
                waiting[prompt_id] = number         # before it is sent: an interruption may come at any time
                known = server.queue(graph, prompt_id, client_id)
                waiting[known] = waiting.pop(prompt_id)
            for prompt_id, entry in ended(server, listener, waiting, graphs, progress):
                number = waiting.pop(prompt_id)
                yield outcome_of(server, graphs[number], number, prompt_id, entry, out)
        except Unreachable:
            waiting.clear()                         # nobody there to cancel them
            raise
        finally:
            if waiting:
                take_back(server, list(waiting))


def take_back(server: Server, prompt_ids: Sequence[str]) -> None:
    """Cancel prompts when the caller stops. Raises Unreachable where the server does not hear of it."""
    try:
        server.cancel(prompt_ids)
    except (OSError, ClientError) as error:
        raise Unreachable(f"stopped, but {server.url} gives no answer ({getattr(error, 'reason', error)}): what was "
                          "queued there may still run") from error


def ended(server: Server, listener: Listener, waiting: Mapping[str, int], graphs: Sequence[Graph],
          progress: Progress | None) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """(id, history or None where the server forgot it) of each prompt that ended. Reads `waiting` while it shrinks."""
    looked = time.monotonic()
    while waiting:
        message = listener.next(LOOK_SECONDS)
        told = message["data"].get("prompt_id") if message is not None else None
        ours = told if isinstance(told, str) and told in waiting else None
        if message is not None and ours is not None and progress is not None:
            show(message, graphs[waiting[ours]], progress)
        at_end = message is not None and ours is not None and message["type"] in ENDS
        if at_end or time.monotonic() - looked >= LOOK_SECONDS:
            yield from gone(server, list(waiting))      # all: one that ended before may just have left the queue
            looked = time.monotonic()


def gone(server: Server, prompt_ids: Sequence[str]) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Of these, the ones that neither wait nor run. The queue is asked first: what leaves it is in the history."""
    there = set(server.queued(prompt_ids))
    for prompt_id in prompt_ids:
        if prompt_id not in there:
            yield prompt_id, server.history(prompt_id)


def show(message: Mapping[str, Any], graph: Graph, progress: Progress) -> None:
    """Tell of a node's progress."""
    data = message["data"]
    if message["type"] == "progress" and data.get("node") in graph:
        progress(node_label(graph, data["node"]), int(data["value"]), int(data["max"]))


def outcome_of(server: Server, graph: Graph, number: int, prompt_id: str, entry: dict[str, Any] | None, out: Path
               ) -> WorkflowOutcome:
    """Read the end of a prompt in its history, and fetch what it made."""
    if entry is None:
        return WorkflowOutcome(number, prompt_id, problem=Unreachable(FORGOTTEN))
    for kind, details in entry["status"]["messages"]:
        if kind == "execution_error":
            where = node_label(graph, details["node_id"])
            what = f"{details['exception_type']}: {details['exception_message'].strip()}"
            return WorkflowOutcome(number, prompt_id, problem=Failed(f"node {where} failed: {what}"))
        if kind == "execution_interrupted":
            return WorkflowOutcome(number, prompt_id, problem=Interrupted("the run was interrupted on the server"))
    files = made(entry["outputs"])
    if not files:
        return WorkflowOutcome(number, prompt_id,
                               problem=Failed("the workflow ended without a file; add a SaveImage node"))
    try:
        return WorkflowOutcome(number, prompt_id,
                               [save(out, file["filename"], server.download(file)) for file in files])
    except ClientError as error:
        return WorkflowOutcome(number, prompt_id, problem=error)


def made(outputs: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """Entries of the files that nodes saved; those that were only shown where none was saved."""
    found = [file for shown in outputs.values() for entries in shown.values() if isinstance(entries, list)
             for file in entries if isinstance(file, dict) and file.get("filename")]
    return [file for file in found if file.get("type") == "output"] or found


def save(out: Path, name: str, data: bytes) -> Path:
    """Into the folder under the server's own name, or one beside it that is free; never over another file."""
    leaf = PurePosixPath(name.replace("\\", "/")).name
    if leaf in ("", ".", "..") or "\0" in leaf:
        raise ClientError(f"the server made a file of an impossible name: {name!r}")
    path, number = out / leaf, 2
    while path.exists() and path.read_bytes() != data:
        path, number = (out / leaf).with_stem(f"{Path(leaf).stem}-{number}"), number + 1
    with replacing(path) as beside:
        beside.write_bytes(data)
    return path
