"""Many clients at once: whatever they queue ends in exactly one way, and the server keeps running in the same memory.

    pytest tests/host/test_soak.py            24 prompts from 4 clients
    pytest tests/host/test_soak.py -m slow    200 from 8, with more than 60 kinds of malformed ones
"""
import asyncio
import copy
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from host import harness

GRAPH = json.loads((harness.ROOT / "workflows" / "api" / "mini-lcm-4-steps.json").read_text(encoding="utf-8"))
WRONG = (None, True, -1, 10 ** 30, 1e-320, "", "../../../etc/passwd", "nowhere.safetensors", "x" * 100_000, "\x00",
         [], {}, ["99", 0], ["1", 7], ["8", 0], ["5", 0])
NAMED = {"ValueError", "CheckpointError", "CheckpointNotFound", "FileNotFoundError"}
REFUSED, SUCCESS, ERROR, STOPPED = "refused", "success", "error", "interrupted"
ENDS = {"execution_success": SUCCESS, "execution_error": ERROR, "execution_interrupted": STOPPED}


def malformed() -> Iterator[tuple[str, dict]]:
    """A title and a graph with one wrong value, for every value of WRONG in every input of our nodes, and more."""
    for name, entry in GRAPH.items():
        if not entry["class_type"].startswith("PixArt"):
            continue
        for key in entry["inputs"]:
            for value in WRONG:
                graph = copy.deepcopy(GRAPH)
                graph[name]["inputs"][key] = value
                yield f"{entry['class_type']}.{key} = {value!r:.40}", graph
            graph = copy.deepcopy(GRAPH)
            del graph[name]["inputs"][key]
            yield f"{entry['class_type']} without {key}", graph
        graph = copy.deepcopy(GRAPH)
        graph[name]["class_type"] += "X"
        yield f"{entry['class_type']}X", graph


def seeded(seed: int) -> dict:
    """A prompt that nothing is wrong with, and that no cache answers."""
    graph = copy.deepcopy(GRAPH)
    graph["6"]["inputs"]["seed"] = seed
    return graph


def resident(server: harness.Server) -> int:
    """Bytes that the server's process holds, on Linux."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def unnamed(outcome: harness.Outcome) -> str | None:
    """What is wrong with the error that a prompt ended in: an exception that says nothing to a person."""
    kind = outcome.messages[-1][1].get("exception_type", "").rpartition(".")[2]
    return None if kind in NAMED and outcome.error else f"{kind}: {outcome.error[:300]}"


class Trial:
    """What became of all prompts, by title; `faults` are the ends that should not be."""

    def __init__(self, server: harness.Server, seed: int) -> None:
        self.server, self.chance, self.cases = server, random.Random(seed), list(malformed())
        self.chance.shuffle(self.cases)
        self.ends: Counter[str] = Counter()
        self.faults: list[str] = []
        self.number, self.first = 0, 0

    def next(self) -> tuple[str, dict, bool]:
        """A prompt, and whether it is to be stopped: half are sound, a quarter malformed, a quarter stopped."""
        self.number += 1
        if self.number % 4 == 1:
            return (*self.cases.pop(), False)
        return f"seed {self.number}", seeded(self.number), self.number % 4 == 3

    async def client(self, count: int) -> None:
        async with harness.Session(self.server) as session:
            for _ in range(count):
                title, graph, stop = self.next()
                end = await self.one(session, title, graph, stop)
                self.ends[end] += 1
                if sum(self.ends.values()) == 20:
                    self.first = resident(self.server)

    async def one(self, session: harness.Session, title: str, graph: dict, stop: bool) -> str:
        status, answer = await asyncio.to_thread(
            self.server.post, "/prompt", {"prompt": graph, "client_id": session.client})
        if status != 200 or answer["node_errors"]:
            self.expect(answer and (answer["error"]["message"] or answer["node_errors"]), title, f"refused: {answer}")
            if status != 200:
                return REFUSED

        def watch(kind: str, data: dict) -> None:
            if stop and kind == "progress":
                self.server.post("/interrupt", {"prompt_id": data["prompt_id"]})
        outcome = await session.follow(answer["prompt_id"], watch)
        ends = [kind for kind, _ in outcome.messages if kind in ENDS]
        self.expect(len(ends) == 1, title, f"ended {len(ends)} times: {ends}")
        if outcome.end == "execution_error":
            self.expect(unnamed(outcome) is None, title, str(unnamed(outcome)))
        return ENDS[outcome.end]

    def expect(self, right: object, title: str, otherwise: str) -> None:
        if not right:
            self.faults.append(f"{title}: {otherwise}")


def soak(server: harness.Server, clients: int, count: int, seed: int) -> Trial:
    trial = Trial(server, seed)

    async def all_of_them() -> None:
        await asyncio.gather(*[trial.client(count) for _ in range(clients)])
    asyncio.run(all_of_them())
    assert not trial.faults, "\n".join(trial.faults)
    assert server.process.poll() is None and empty_soon(server), server.get("/queue")
    assert sum(trial.ends.values()) == clients * count
    return trial


def empty_soon(server: harness.Server) -> bool:
    """A prompt has told its end a moment before it leaves the queue."""
    until = time.monotonic() + 30
    while (queue := server.get("/queue"))["queue_running"] or queue["queue_pending"]:
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def test_two_dozen_prompts_from_four_clients(server):
    found = soak(server, 4, 6, seed=1)
    assert found.ends[SUCCESS] >= 12 and found.ends[REFUSED] + found.ends[ERROR] >= 3, found.ends


@pytest.mark.slow
def test_two_hundred_prompts_from_eight_clients(server):
    found = soak(server, 8, 25, seed=2)
    assert found.ends[SUCCESS] >= 100 and found.ends[STOPPED] >= 20, found.ends
    grown = resident(server) / found.first
    print(f"{dict(found.ends)}, memory {grown:.3f} of that after 20 prompts ({found.first >> 20} MiB)")
    assert grown < 1.1


@pytest.mark.slow
def test_every_malformed_prompt_is_refused_or_ends_in_a_named_error(server):
    trial = Trial(server, 0)

    async def one_after_another() -> None:
        async with harness.Session(server) as session:
            for title, graph in malformed():
                trial.ends[await trial.one(session, title, graph, False)] += 1
    asyncio.run(one_after_another())
    assert not trial.faults, "\n".join(trial.faults)
    assert trial.ends[REFUSED] + trial.ends[ERROR] > 60
    print(dict(trial.ends))
