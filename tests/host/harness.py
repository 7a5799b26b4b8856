"""Finds installed ComfyUI hosts, runs code in their Python, starts one as a server and talks to it.

Hosts are $COMFYUI_PATH (several with the path separator between them), else ~/comfy/ComfyUI and every
~/comfy/ComfyUI-* beside it.
"""
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACK = "pixart.delta-pack"          # a folder name with a dot and a dash, which the host mangles into a module name
START_SECONDS, PROMPT_SECONDS = 900, 600      # generous: a busy machine is no failure


@dataclass(frozen=True)
class Host:
    path: Path
    python: str

    @property
    def version(self) -> str:
        text = (self.path / "comfyui_version.py").read_text(encoding="utf-8")
        return re.search(r'"([\d.]+)"', text)[1]

    @property
    def environment(self) -> dict[str, str]:
        """What a child process of the host may see: no user settings, no network lookups, no stray Python paths."""
        kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
        return {**kept, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}

    def lacks(self, packages: tuple[str, ...]) -> str:
        """Those of the packages that its Python cannot import, with blanks between them."""
        code = ("import sys; from importlib.util import find_spec; "
                "print(*[name for name in sys.argv[1:] if find_spec(name) is None])")
        return subprocess.run([self.python, "-c", code, *packages], capture_output=True, text=True, check=True,
                              env=self.environment).stdout.strip()


def find_hosts() -> list[Host]:
    """Every host that is there."""
    named = os.environ.get("COMFYUI_PATH", "")
    places = [Path(place).expanduser() for place in named.split(os.pathsep) if place]
    if not places:
        home = Path.home() / "comfy"
        places = [home / "ComfyUI", *sorted(home.glob("ComfyUI-*"))]
    return [Host(place, python_of(place)) for place in places if (place / "comfyui_version.py").is_file()]


def python_of(host: Path) -> str:
    """$COMFYUI_PYTHON, else the host's own environment, else this one."""
    named = os.environ.get("COMFYUI_PYTHON")
    places = [host / folder / leaf for folder in (".venv", "venv") for leaf in ("bin/python", "Scripts/python.exe")]
    return named or next((str(place) for place in places if place.is_file()), sys.executable)


def not_run() -> str:
    looked = os.environ.get("COMFYUI_PATH") or "~/comfy/ComfyUI, ~/comfy/ComfyUI-*"
    return f"host tier NOT RUN: no ComfyUI at {looked} (set $COMFYUI_PATH)"


def link_pack(custom_nodes: Path) -> None:
    """This checkout as an installed extension; a copy where the system allows no links."""
    custom_nodes.mkdir(parents=True)
    try:
        (custom_nodes / PACK).symlink_to(ROOT, target_is_directory=True)
    except OSError:
        shutil.copytree(ROOT, custom_nodes / PACK, ignore=shutil.ignore_patterns(".git", ".venv", "tests"))


class Server:
    """A host running without a GPU in a folder of its own. Use as a context manager."""

    def __init__(self, host: Host, folder: Path, options: tuple[str, ...] = ()) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.host, self.folder, self.log_path = host, folder, folder / "server.log"
        self.command = [host.python, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(self.port),
                        "--base-directory", str(folder), "--disable-api-nodes", "--disable-metadata",
                        "--preview-method", "latent2rgb",
                        "--database-url", "sqlite:///:memory:", *options]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def __enter__(self) -> "Server":
        with self.log_path.open("w") as log:
            self.process = subprocess.Popen(self.command, cwd=self.host.path, env=self.host.environment,
                                            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            self.wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait(self) -> None:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI {self.host.version} ended at start:\n{self.log[-4000:]}")
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise RuntimeError(f"ComfyUI {self.host.version} did not answer in {START_SECONDS} s:\n{self.log[-4000:]}")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.address + path, timeout=30) as answer:
            body = answer.read()
            return json.loads(body) if "json" in answer.headers.get_content_type() else body

    def upload(self, name: str, image: bytes) -> tuple[int, Any]:
        """A PNG into the host's input folder, as the page does it."""
        mark = uuid.uuid4().hex
        head = (f'--{mark}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
                "Content-Type: image/png\r\n\r\n")
        return self.send("/upload/image", head.encode() + image + f"\r\n--{mark}--\r\n".encode(),
                         f"multipart/form-data; boundary={mark}")

    def post(self, path: str, data: dict) -> tuple[int, Any]:
        return self.send(path, json.dumps(data).encode(), "application/json")

    def send(self, path: str, body: bytes, kind: str) -> tuple[int, Any]:
        """Status and decoded answer; errors of the server are answers too."""
        request = urllib.request.Request(self.address + path, body, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                status, body = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, body = error.code, error.read()
        return status, json.loads(body) if body.strip() else None


@dataclass
class Outcome:
    """What became of one prompt: the messages of its run in order, previews counted, and its ui outputs."""

    prompt_id: str
    messages: list[tuple[str, dict]]
    previews: list[bytes]
    outputs: dict[str, dict]

    @property
    def end(self) -> str:
        return self.messages[-1][0] if self.messages else ""

    @property
    def error(self) -> str:
        return self.messages[-1][1].get("exception_message", "") if self.end == "execution_error" else ""

    def images(self, node: str) -> list[dict]:
        return self.outputs.get(node, {}).get("images", [])


def told(outcome: Outcome) -> list[tuple[str, str]]:
    """Nodes and what stood on them, in order. A binary message of kind 3 holds length of the id, id, text."""
    found = []
    for frame in outcome.previews:
        kind, length = struct.unpack(">II", frame[:8])
        if kind == 3:
            found.append((frame[8:8 + length].decode(), frame[8 + length:].decode()))
    return found


def texts(outcome: Outcome, name: str) -> list[str]:
    """What stood on one node, in order."""
    return [text for node, text in told(outcome) if node == name]


class Session:
    """A websocket to a server, for queueing prompts and following them."""

    LAST = ("execution_success", "execution_error", "execution_interrupted")

    def __init__(self, server: Server) -> None:
        self.server, self.client = server, uuid.uuid4().hex

    async def __aenter__(self) -> "Session":
        import aiohttp
        self.http = aiohttp.ClientSession()
        self.socket = await self.http.ws_connect(f"{self.server.address}/ws?clientId={self.client}",
                                                 max_msg_size=0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.socket.close()
        await self.http.close()

    def queue(self, prompt: dict) -> str:
        status, answer = self.server.post("/prompt", {"prompt": prompt, "client_id": self.client})
        if status != 200 or answer["node_errors"]:
            raise AssertionError(f"refused with {status}: {json.dumps(answer)[:2000]}")
        return answer["prompt_id"]

    async def follow(self, prompt_id: str, on_message: Any = None) -> Outcome:
        """Read until this prompt ends. on_message(kind, data) may act in between."""
        outcome = Outcome(prompt_id, [], [], {})
        until = time.monotonic() + PROMPT_SECONDS
        while outcome.end not in self.LAST:
            message = await self.socket.receive(timeout=max(0.1, until - time.monotonic()))
            if isinstance(message.data, bytes):
                outcome.previews.append(message.data)
                continue
            message = json.loads(message.data)
            kind, data = message["type"], message["data"]
            if data.get("prompt_id") != prompt_id:
                continue
            outcome.messages.append((kind, data))
            if kind == "executed" and data.get("output"):
                outcome.outputs[data["node"]] = data["output"]
            if on_message is not None:
                on_message(kind, data)
        return outcome
