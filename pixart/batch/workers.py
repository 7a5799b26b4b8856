"""Where images are generated: in this process, in one process a device, or in actors of a Ray cluster.

All of them hand the images back to the process that called.
"""
import logging
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.util import find_spec
from typing import Any

from .generate import GeneratedTask, GenerationSettings, generate_group
from .tasks import Task

TaskGroup = Sequence[Task]
GenerateGroup = Callable[[GenerationSettings, "str | None", TaskGroup], list[GeneratedTask]]
TASK_TRIES = 2              # a group whose process dies twice is a failure
LOST = "the process that generated it died, twice; was it killed, or is there too little memory?"


def here(settings: GenerationSettings, device: str | None, groups: Sequence[TaskGroup],
         generate: GenerateGroup = generate_group) -> Iterator[list[GeneratedTask]]:
    for group in groups:
        yield generate(settings, device, group)


def processes(settings: GenerationSettings, devices: Sequence[str], groups: Sequence[TaskGroup],
              generate: GenerateGroup = generate_group) -> Iterator[list[GeneratedTask]]:
    """One process a device; each takes the next group when it is done. A process that dies is started again."""
    todo: queue.SimpleQueue[TaskGroup] = queue.SimpleQueue()
    done: queue.SimpleQueue[list[GeneratedTask] | BaseException] = queue.SimpleQueue()
    for group in groups:
        todo.put(group)
    stop = threading.Event()
    threads = [threading.Thread(target=_serve, args=(settings, device, generate, todo, done, stop))
               for device in devices]
    for thread in threads:
        thread.start()
    try:
        for _ in groups:
            result = done.get()
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _serve(settings: GenerationSettings, device: str, generate: GenerateGroup, todo: "queue.SimpleQueue[TaskGroup]",
           done: "queue.SimpleQueue[list[GeneratedTask] | BaseException]", stop: threading.Event) -> None:
    """Feed the process of one device until nothing is left."""
    executor = _executor()
    try:
        while not stop.is_set():
            group = todo.get_nowait()
            for _ in range(TASK_TRIES):
                try:
                    done.put(executor.submit(generate, settings, device, group).result())
                    break
                except BrokenProcessPool:
                    executor.shutdown()
                    executor = _executor()
            else:
                done.put([GeneratedTask(task, None, LOST) for task in group])
    except queue.Empty:
        pass
    except BaseException as error:      # raised where the results are awaited
        done.put(error)
    finally:
        executor.shutdown()


def _executor() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=start_worker)


def start_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it: else a worker would wait for ever, with its models in memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)
    threading.Thread(target=watch, daemon=True).start()


def on_ray(settings: GenerationSettings, address: str, count: int | None, groups: Sequence[TaskGroup],
           generate: GenerateGroup = generate_group) -> Iterator[list[GeneratedTask]]:
    """Actors of a Ray cluster, one a GPU, else `count` (or one) on CPUs; Ray starts again what dies.

    address: as `ray.init` takes it; "auto" is the cluster of this machine, "local" one just for this run. The library
    and the files of the settings must lie on every machine at the same places.
    """
    if find_spec("ray") is None:
        raise ImportError("--ray needs the package ray: pip install 'pixart-delta[ray]'")
    import ray

    started = not ray.is_initialized()
    if started:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        actor = ray.remote(RayWorker).options(num_cpus=1, num_gpus=1 if gpus else 0, max_restarts=3, max_task_retries=3)
        yield from _handed_out([actor.remote(settings, generate) for _ in range(count or gpus or 1)], groups)
    finally:
        if started:
            ray.shutdown()


class RayWorker:
    """What runs on a worker of Ray."""

    def __init__(self, settings: GenerationSettings, generate: GenerateGroup) -> None:
        self.settings, self.generate = settings, generate

    def pid(self) -> int:
        return os.getpid()

    def generate_group(self, group: TaskGroup) -> list[GeneratedTask]:
        return self.generate(self.settings, None, group)


def _handed_out(actors: Sequence[Any], groups: Sequence[TaskGroup]) -> Iterator[list[GeneratedTask]]:
    """A group to every actor, and the next one to whichever is done."""
    import ray
    from ray.exceptions import RayActorError

    left = list(reversed(groups))
    running: dict[Any, tuple[Any, TaskGroup]] = {}
    free = list(actors)
    while left or running:
        while left and free:
            actor, group = free.pop(), left.pop()
            running[actor.generate_group.remote(group)] = (actor, group)
        (ended, *_), _ = ray.wait(list(running), num_returns=1)
        actor, group = running.pop(ended)
        try:
            yield ray.get(ended)
            free.append(actor)
        except RayActorError:               # for good: Ray has tried again
            yield [GeneratedTask(task, None, LOST) for task in group]
        if not free and not running and left:
            raise OSError(f"all workers of the Ray cluster died; {len(left)} groups are left, run the command again")
