"""Runs the stages, each in a process of its own with a time limit, and keeps the report up to date."""
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from ..instruments.machine import cores, machine
from ..instruments.report import Report
from .stages import STAGES, Stage

ROOT = Path(__file__).resolve().parents[2]
ROOMY = 70 * 2 ** 30            # bytes of a card on which the stages of a round fit side by side
DISK = 14 * 2 ** 30             # bytes of weights that the stages write
GRACE = 3.0                     # seconds between asking a stage to end and ending it


class Campaign:
    """Everything from one call of the command."""

    def __init__(self, out: Path, seconds: float, rehearse: bool, only: Sequence[str] | None = None,
                 work: Path | None = None) -> None:
        self.until, self.rehearse = time.monotonic() + seconds, rehearse
        self.stages = [stage for stage in STAGES if not only or stage.name in only]
        self.work = work
        facts = machine("cpu" if rehearse else "cuda")
        note = {"rehearsal": "tiny models on the CPU; no figure here means anything"} if rehearse else {}
        self.report = Report(out, facts | note)
        self.lock = threading.Lock()
        self.running: set[subprocess.Popen] = set()

    def run(self) -> int:
        """The number of failures. However it ends, no stage is left running."""
        try:
            return self.run_rounds()
        finally:
            for process in list(self.running):
                stop(process)

    def run_rounds(self) -> int:
        with tempfile.TemporaryDirectory(prefix="pixart-gpu-", dir=roomy_folder(self.rehearse)) as folder:
            work = self.work or Path(folder)
            work.mkdir(parents=True, exist_ok=True)
            if self.rehearse:
                self.run_side_by_side(self.rehearsal(), work, self.until - time.monotonic())
                return self.report.failures()
            for number in sorted({stage.round for stage in self.stages}):
                self.run_round(number, work)
        return self.report.failures()

    def rehearsal(self) -> list[list[Stage]]:
        """Two processes, the first round and all others, to share imports, which take longest there."""
        groups = [[stage for stage in self.stages if (stage.round == 1) is first] for first in (True, False)]
        return [group for group in groups if group]

    def run_round(self, number: int, work: Path) -> None:
        """Its stages side by side where there is room, else one after the other."""
        stages = [stage for stage in self.stages if stage.round == number]
        if torch.cuda.get_device_properties(0).total_memory >= ROOMY:
            self.run_side_by_side([[stage] for stage in stages], work, self.seconds_for(number))
            return
        for position, stage in enumerate(stages):
            self.run_stages([stage], work, self.seconds_for(number) / (len(stages) - position), cores())

    def run_side_by_side(self, groups: Sequence[Sequence[Stage]], work: Path, seconds: float) -> None:
        """Each group in a process of its own."""
        count = 1 if self.rehearse else cores() // len(groups)
        threads = [threading.Thread(target=self.run_stages, args=(group, work, seconds, count), daemon=True)
                   for group in groups]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def seconds_for(self, number: int) -> float:
        """A round's share of the time left: what earlier rounds did not use goes to the later ones."""
        shares = {stage.round: max(other.share for other in self.stages if other.round == stage.round)
                  for stage in self.stages if stage.round >= number}
        return max(1.0, (self.until - time.monotonic()) * shares[number] / sum(shares.values()))

    def run_stages(self, stages: Sequence[Stage], work: Path, seconds: float, threads: int) -> None:
        """In one process, with that many threads; at most `seconds` all together."""
        started, names = time.monotonic(), " ".join(stage.name for stage in stages)
        say(f"-- {names}: at most {seconds:.0f} s")
        process = subprocess.Popen(self.command(stages, work, seconds), cwd=ROOT, env=environment(threads),
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, encoding="utf-8",
                                   start_new_session=True)
        self.running.add(process)
        reader = threading.Thread(target=self.read, args=(process,), daemon=True)
        reader.start()
        try:
            code = process.wait(seconds)
            end = "done" if code == 0 else f"ended with code {code}"
        except subprocess.TimeoutExpired:
            end = "stopped: its time was over"
        finally:
            stop(process)
            self.running.discard(process)
        reader.join(GRACE)
        taken = time.monotonic() - started
        facts = {"end": end, "seconds": round(taken, 1), "limit": round(seconds, 1)}
        with self.lock:
            for stage in stages:
                self.report.stage(stage.name, about=stage.title, **facts)
        say(f"-- {names}: {end} after {taken:.0f} s")

    def command(self, stages: Sequence[Stage], work: Path, seconds: float) -> list[str]:
        return [sys.executable, "-m", "benchmarks", "gpu", "--stage", *(stage.name for stage in stages), "--seconds",
                str(seconds - GRACE), "--work", str(work.resolve()), "--out", str(self.report.folder.resolve()),
                *(["--rehearse"] if self.rehearse else [])]

    def read(self, process: subprocess.Popen) -> None:
        """Into the report, line by line as they come."""
        for line in process.stdout or ():
            try:
                note = json.loads(line)
            except ValueError:          # cut off by the end of the process
                continue
            with self.lock:
                self.report.add(note)


def environment(threads: int) -> dict[str, str]:
    """Offline, this checkout first, and a share of the processor."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1",
            "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": str(max(1, threads))}


def roomy_folder(rehearse: bool) -> str | None:
    """A folder in memory if it has room for the weights that the stages write, else the usual temporary folder."""
    memory = Path("/dev/shm")
    if not rehearse and memory.is_dir() and shutil.disk_usage(memory).free > DISK:
        return str(memory)
    return None


def stop(process: subprocess.Popen) -> None:
    """End a stage and whatever it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):
            break
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
