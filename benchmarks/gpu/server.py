"""A ComfyUI without a page, in a folder of its own, driven over HTTP."""
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACK = "ComfyUI-PixArt-Delta"
ENDS = ("execution_success", "execution_error", "execution_interrupted")


class Server:
    """Use as a context manager: starts the host with `options`, waits until it answers, stops it in the end."""

    def __init__(self, host: Path, base: Path, options: tuple[str, ...], seconds: float) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.host, self.base, self.seconds = host, base, seconds
        self.options, self.log_path = options, base / "server.log"

    def command(self) -> list[str]:
        page = self.base / "page"
        page.mkdir(exist_ok=True)
        return [python_of(self.host), "main.py", "--listen", "127.0.0.1", "--port", str(self.port), "--base-directory",
                str(self.base), "--front-end-root", str(page), "--disable-api-nodes", "--database-url",
                "sqlite:///:memory:", *self.options]

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def __enter__(self) -> "Server":
        return self if hasattr(self, "process") else self.start()

    def start(self) -> "Server":
        started = time.monotonic()
        with self.log_path.open("w") as log:
            self.process = subprocess.Popen(self.command(), cwd=self.host, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=subprocess.STDOUT, env=environment(self.host))
        try:
            while not self.answers():
                if self.process.poll() is not None or time.monotonic() - started > self.seconds:
                    raise RuntimeError(f"ComfyUI did not start in {self.seconds:.0f} s: {self.end_of_log()}")
                time.sleep(0.2)
        except BaseException:
            self.stop()
            raise
        self.start_seconds = time.monotonic() - started
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def end_of_log(self) -> str:
        print(self.log[-6000:], file=sys.stderr, flush=True)
        lines = [line for line in self.log.splitlines() if line.strip()]
        return " / ".join(lines[-3:])

    def answers(self) -> bool:
        try:
            return bool(self.get("/system_stats"))
        except (urllib.error.URLError, OSError):
            return False

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return json.loads(answer.read())

    def post(self, path: str, body: dict) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                found = answer.read()
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"ComfyUI refused: {error.read().decode(errors='replace')[:400]}") from error
        return json.loads(found) if found.strip() else None

    def queue(self, prompt: dict) -> str:
        return self.post("/prompt", {"prompt": prompt})["prompt_id"]

    def messages(self, prompt_id: str) -> list[tuple[str, dict]]:
        """Messages of a prompt that has ended; empty before."""
        found = self.get(f"/history/{prompt_id}").get(prompt_id)
        return [tuple(message) for message in found["status"]["messages"]] if found else []

    def follow(self, prompt_id: str, seconds: float) -> tuple[str, float, str]:
        """How a prompt ended, the seconds it took, and what was wrong."""
        until = time.monotonic() + seconds
        while not (messages := self.messages(prompt_id)):
            if time.monotonic() > until or self.process.poll() is not None:
                raise RuntimeError(f"the prompt did not end in {seconds:.0f} s: {self.end_of_log()}")
            time.sleep(0.02)
        by_kind = dict(messages)
        end = next(kind for kind in ENDS if kind in by_kind)
        taken = (by_kind[end]["timestamp"] - by_kind["execution_start"]["timestamp"]) / 1000
        return end, taken, str(by_kind[end].get("exception_message", "")).strip()

    def used(self) -> dict[str, float]:
        """GiB of the first device: in use by anything, and held by torch."""
        device = self.get("/system_stats")["devices"][0]
        return {"used GiB": (device["vram_total"] - device["vram_free"]) / 2 ** 30,
                "held by torch GiB": device["torch_vram_total"] / 2 ** 30}


def python_of(host: Path) -> str:
    """$COMFYUI_PYTHON, else the host's own environment, else this one."""
    own = host / ".venv" / "bin" / "python"
    return os.environ.get("COMFYUI_PYTHON") or (str(own) if own.is_file() else sys.executable)


def environment(host: Path) -> dict[str, str]:
    """Offline, and without imports from the folder of this checkout."""
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and Path(path) != ROOT]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
