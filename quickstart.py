"""Set PixArt up on this machine, then make an image (the default) or run all tests: `python quickstart.py [test]`.

Needs only Python, before anything is installed. The image is made by a ComfyUI found on this machine, run without its
page, or else by the standalone pipeline in `.venv`. It can be interrupted and run again at any time.
"""
from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import http.client
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
WORKFLOW = ROOT / "workflows" / "api" / "mini-lcm-4-steps.json"
CONTROL_WORKFLOW = ROOT / "workflows" / "api" / "mini-control-lcm-4-steps.json"
BROWSERS = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome", "/snap/bin/chromium",
            "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
            "/Applications/Chromium.app/Contents/MacOS/Chromium",
            r"C:\Program Files\Google\Chrome\Application\chrome.exe",
            r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe")

HAS_TORCH = "import importlib.metadata as metadata; metadata.version('torch')"

# Run by the Python that will read the image: ComfyUI itself takes half a file without a word.
OPENS = "import sys; from PIL import Image; Image.open(sys.argv[1]).load()"
EDGES = ("canny", "soft", "none", "invert")

# What `ask` raises where the server is gone.
UNANSWERED = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)

# Run by the host's own Python: which of the named packages it has, and whether torch sees a GPU.
PROBE = """
import importlib.metadata as metadata, json, sys
def version(name):
    try: return metadata.version(name)
    except metadata.PackageNotFoundError: return None
found = {name: version(name) for name in sys.argv[1:]}
gpu = False
if found.get("torch"):
    import torch
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    gpu = gpu or (hasattr(torch, "xpu") and torch.xpu.is_available())
print(json.dumps({"versions": found, "gpu": bool(gpu)}))
"""


class Problem(RuntimeError):
    """Something the user can put right; shown as one message without a traceback."""


def say(text: str) -> None:
    print(f"[quickstart] {text}", flush=True)


# ---- the environment ------------------------------------------------------------------------------------------------

def requirements() -> list[str]:
    """The lines of requirements.txt without comments, such as `torch>=2.4`."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [spec for line in lines if (spec := line.split("#")[0].strip())]


def extra(name: str) -> list[str]:
    """One list of optional dependencies from pyproject.toml (Python 3.10 has no TOML reader, a list is also Python)."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(rf"^{name} = (\[.*?^\])", text, re.MULTILINE | re.DOTALL)
    if not found:
        raise Problem(f"pyproject.toml has no list of optional dependencies named {name}")
    return ast.literal_eval(found[1])


def venv_python() -> Path:
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def works(python: Path | str, code: str) -> bool:
    """Whether that Python starts and runs the code without an error."""
    try:
        return subprocess.run([str(python), "-c", code], capture_output=True).returncode == 0
    except OSError:
        return False


def pip_install(python: Path, *arguments: str) -> None:
    """Install and show pip's own progress, in full only where somebody watches."""
    quiet = [] if sys.stdout.isatty() else ["-qq"]
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", *quiet, *arguments]
    if subprocess.run(command, stdin=subprocess.DEVNULL).returncode:
        raise Problem("pip could not install everything (its message is above). Run the same command again: "
                      "what is installed already is kept.")


def install_torch(python: Path) -> None:
    """Prefer a wheel at hand (PIP_FIND_LINKS or pip's configuration); the index may hold only a far larger build."""
    if works(python, HAS_TORCH):
        return
    spec = next(line for line in requirements() if line.startswith("torch"))
    local = [str(python), "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", spec]
    if subprocess.run(local, capture_output=True).returncode == 0:
        say("torch: took the wheel at hand")
        return
    size = "several hundred MB"
    if platform.system() == "Linux" and not shutil.which("nvidia-smi"):
        size = ("several GB: the usual Linux build carries CUDA though no NVIDIA GPU is seen here. To avoid that, "
                "stop, put a CPU wheel of torch into a folder and set PIP_FIND_LINKS to it")
    say(f"torch: no wheel at hand, downloading ({size})")


def prepare(use: str) -> Path:
    """Make `.venv` ready for one use (`standalone` or `test`), if it is not yet, and return its Python."""
    wanted, alone = requirements() + extra(use), extra("oracles") if use == "test" else []
    state = hashlib.sha256(json.dumps([wanted, alone, str(VENV)]).encode()).hexdigest()
    python, stamp = venv_python(), VENV / f".ready-{use}"
    if stamp.is_file() and stamp.read_text() == state and works(python, HAS_TORCH):
        say(f"environment: {VENV} is ready")
        return python
    if not works(python, "import pip"):
        say(f"environment: creating {VENV}")
        made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], capture_output=True, text=True)
        if made.returncode:
            raise Problem(f"could not create {VENV}: {(made.stdout + made.stderr).strip()}\n"
                          "On Debian and Ubuntu: apt install python3-venv")
    install_torch(python)
    say(f"environment: installing {', '.join(re.split('[<>=]', spec)[0] for spec in wanted)}")
    pip_install(python, *wanted)
    if alone:
        pip_install(python, "--no-deps", *alone)
    stamp.write_text(state)
    return python


# ---- ComfyUI --------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Host:
    """A ComfyUI work tree with the Python that runs it."""

    path: Path
    python: str
    version: str
    gpu: bool
    missing: tuple[str, ...]     # requirements of ours that its Python lacks

    @property
    def remedy(self) -> str:
        return (f"the Python of ComfyUI in {self.path} lacks {', '.join(self.missing)}. Install with:\n"
                f'    "{self.python}" -m pip install -r "{ROOT / "requirements.txt"}"')


def is_host(path: Path) -> bool:
    return (path / "main.py").is_file() and (path / "comfyui_version.py").is_file()


def host_folders(chosen: str | None, all_of_them: bool = False) -> list[Path]:
    """ComfyUI folders, the preferred one first. Only a folder named by the user must exist."""
    if chosen:
        path = Path(chosen).expanduser().resolve()
        if not is_host(path):
            raise Problem(f"--comfyui {chosen}: no ComfyUI there (main.py and comfyui_version.py are expected)")
        return [path]
    named = [Path(part).expanduser() for part in os.environ.get("COMFYUI_PATH", "").split(os.pathsep) if part]
    around = [ROOT.parent.parent] if ROOT.parent.name == "custom_nodes" else []
    here = Path(os.path.abspath(__file__)).parent            # unresolved: the checkout may be linked into the host
    around += [here.parent.parent] if here.parent.name == "custom_nodes" else []
    usual = [Path.home() / "comfy" / "ComfyUI"]
    usual += sorted((Path.home() / "comfy").glob("ComfyUI-*")) if all_of_them else []
    found = dict.fromkeys(path.resolve() for path in named + around + usual if is_host(path))
    return list(found)


def host_python(path: Path) -> str:
    """The interpreter a host folder brings, else the one that runs this file."""
    inside = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    places = [path / ".venv" / inside, path / "venv" / inside, path.parent / "python_embeded" / "python.exe"]
    for place in places:
        if place.is_file():
            return str(place)
    say(f"ComfyUI in {path} has no .venv or venv of its own; trying {sys.executable}")
    return sys.executable


def older(version: str, bound: str) -> bool:
    numbers = [[int(n) for n in re.findall(r"\d+", text.split("+")[0])[:3]] for text in (version, bound)]
    return numbers[0] < numbers[1]


def inspect_host(path: Path) -> Host:
    """Ask the host's Python for its packages and GPU."""
    python = host_python(path)
    version = re.search(r'__version__\s*=\s*"([^"]+)"', (path / "comfyui_version.py").read_text(encoding="utf-8"))
    bounds = dict(spec.split(">=") for spec in requirements())
    answer = subprocess.run([python, "-c", PROBE, *bounds, "aiohttp"], capture_output=True, text=True)
    if answer.returncode:
        raise Problem(f"{python} of ComfyUI in {path} does not work: {answer.stderr.strip()[-300:]}")
    facts = json.loads(answer.stdout.splitlines()[-1])
    missing = [name if has is None else f"{name}>={bounds[name]} (has {has})" for name, has in facts["versions"].items()
               if has is None or name in bounds and older(has, bounds[name])]
    return Host(path, python, version[1] if version else "unknown", facts["gpu"], tuple(missing))


def link(target: Path, place: Path) -> None:
    """A folder link; Windows allows junctions where it refuses symbolic links."""
    try:
        place.symlink_to(target, target_is_directory=True)
    except OSError:
        if sys.platform != "win32":
            raise
        import _winapi
        _winapi.CreateJunction(str(target), str(place))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(url: str, body: dict | None = None) -> dict:
    """GET, or POST of a JSON body; the JSON answer also where the status says error."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=30) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return json.loads(error.read() or b"{}")


def stop(process: subprocess.Popen) -> None:
    """Ask, then insist: interrupt, terminate, kill."""
    gentle = signal.SIGTERM if os.name == "nt" else signal.SIGINT
    for sign in (gentle, signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        if process.poll() is not None:
            return
        process.send_signal(sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)


@contextlib.contextmanager
def running(host: Host, base: Path, *options: str) -> Iterator[str]:
    """A headless server that sees only this extension, below the empty folder `base`; yields its address."""
    for folder in ("custom_nodes", "models", "input", "output"):
        (base / folder).mkdir()
    link(ROOT, base / "custom_nodes" / "pixart-delta")
    log, port = base / "comfyui.log", free_port()
    command = [host.python, str(host.path / "main.py"), "--listen", "127.0.0.1", "--port", str(port),
               "--base-directory", str(base), "--database-url", "sqlite:///:memory:", "--disable-api-nodes",
               "--disable-auto-launch", *([] if host.gpu else ["--cpu"]), *options]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=host.path, stdin=subprocess.DEVNULL, stdout=output,
                                   stderr=subprocess.STDOUT, start_new_session=os.name != "nt")
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until_up(address, process, log)
            if not ask(f"{address}/object_info/PixArtLoader"):
                raise Problem(f"ComfyUI {host.version} did not load this extension. Its log:\n{tail(log)}")
            yield address
        except UNANSWERED as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)         # a connection ends a moment before its process
            code = process.poll()
            how = f"gives no answer any more ({error})" if code is None else f"ended with exit code {code}"
            raise Problem(f"ComfyUI {how}; with too little memory the system ends it. The end of its log:\n{tail(log)}"
                          ) from error
        finally:
            stop(process)


def wait_until_up(address: str, process: subprocess.Popen, log: Path, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError, ValueError):
            if "system" in ask(f"{address}/system_stats"):
                return
        time.sleep(0.3)
    code = process.poll()
    why = f"gave no answer in {seconds:.0f} s" if code is None else f"ended with exit code {code}"
    raise Problem(f"ComfyUI {why}. The end of its log:\n{tail(log)}")


def tail(log: Path, lines: int = 40) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def render(address: str, graph: dict) -> Path:
    """Queue the graph, wait for it, and return the image's path below the server's output folder."""
    started = time.monotonic()
    answer = ask(f"{address}/prompt", {"prompt": graph})
    if "prompt_id" not in answer or answer.get("node_errors"):
        raise Problem(f"ComfyUI refused the workflow:\n{refusal(answer)}")
    say("queued; the first run also loads the models")
    reported = started
    while not (entry := ask(f"{address}/history/{answer['prompt_id']}").get(answer["prompt_id"])):
        if time.monotonic() - reported > 15:
            reported = time.monotonic()
            say(f"still working after {reported - started:.0f} s")
        time.sleep(0.2)
    for kind, details in entry["status"]["messages"]:
        if kind == "execution_error":
            raise Problem(f"{details['node_type']} failed: {details['exception_message'].strip()}")
    images = [image for output in entry["outputs"].values() for image in output.get("images", [])
              if image.get("type") == "output"]      # previews of nodes are temporary
    if not images:
        raise Problem(f"ComfyUI finished without an image: {entry['status']}")
    say(f"done in {time.monotonic() - started:.1f} s")
    return Path(images[0]["subfolder"]) / images[0]["filename"]


def refusal(answer: dict) -> str:
    """The readable part of a 400 answer to POST /prompt."""
    lines = [f"{node['class_type']}: {error['message']}: {error['details']}"
             for node in (answer.get("node_errors") or {}).values() for error in node["errors"]]
    return "\n".join(lines) or json.dumps(answer.get("error", answer))


# ---- the main job ---------------------------------------------------------------------------------------------------

def fill(graph: dict, options: argparse.Namespace) -> dict:
    """Put the user's choices into the API workflow, node by node."""
    width, height = options.size
    for key, node in list(graph.items()):
        if node["class_type"] == "PixArtTextEncode" and options.prompt:
            node["inputs"]["text"] = options.prompt
        if node["class_type"] == "PixArtLCMSampler":
            node["inputs"].update(steps=options.steps, seed=options.seed)
        if node["class_type"] == "PixArtEmptyLatent":
            graph[key] = {"class_type": "EmptyLatentImage",
                          "inputs": {"width": width, "height": height, "batch_size": 1}}
        if node["class_type"] == "PixArtEdges":
            graph["image"] = {"class_type": "LoadImage", "inputs": {"image": options.control.name}}
            graph["opaque"] = {"class_type": "JoinImageWithAlpha",      # LoadImage alone drops what is transparent
                               "inputs": {"image": ["image", 0], "alpha": ["image", 1]}}
            node["inputs"].update(image=["opaque", 0], method=options.edges, width=width, height=height)
        if node["class_type"] == "PixArtControlNetApply":
            node["inputs"]["strength"] = options.strength
    return graph


def check_image(python: Path | str, path: Path) -> None:
    """Refuse a file that is no whole image before anything is started for it."""
    answer = subprocess.run([str(python), "-c", OPENS, str(path)], capture_output=True, text=True)
    if answer.returncode:
        why = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise Problem(f"--control {path}: cannot be read as an image ({why})")


def image_with_host(host: Host, options: argparse.Namespace) -> str:
    """Render through ComfyUI and say what ran."""
    if options.control:
        check_image(host.python, options.control)
    workflow = CONTROL_WORKFLOW if options.control else WORKFLOW
    graph = fill(json.loads(workflow.read_text(encoding="utf-8")), options)
    say(f"ComfyUI {host.version} in {host.path}: starting without a page{'' if host.gpu else ', on the CPU'}")
    with tempfile.TemporaryDirectory(prefix="pixart-") as folder:
        base = Path(folder).resolve()
        with running(host, base) as address:
            if options.control:
                shutil.copy(options.control, base / "input")
            made = base / "output" / render(address, graph)
            shutil.copyfile(made, options.output)
    return f"workflow {workflow.name} in ComfyUI {host.version}"


def image_standalone(options: argparse.Namespace) -> str:
    """Render through `python -m pixart generate` in `.venv` and say what ran."""
    python = prepare("standalone")
    if options.control:
        check_image(python, options.control)
    width, height = options.size
    command = [str(python), "-m", "pixart", "generate", options.prompt or default_prompt(), "--steps",
               str(options.steps), "--seed", str(options.seed), "--size", f"{width}x{height}", "--out",
               str(options.output)]
    if options.control:
        command += ["--control", str(options.control), "--edges", options.edges, "--strength", str(options.strength)]
    if subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL).returncode:
        raise Problem("the standalone pipeline failed; its message is above")
    return "standalone pipeline (python -m pixart generate), without ComfyUI"


def default_prompt() -> str:
    graph = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    return next(n["inputs"]["text"] for n in graph.values() if n["class_type"] == "PixArtTextEncode")


def usable_host(options: argparse.Namespace) -> Host | None:
    """The host to use, or None with a notice why the standalone pipeline runs instead."""
    if options.standalone:
        return None
    folders = host_folders(options.comfyui)
    if not folders:
        say("no ComfyUI found (--comfyui, $COMFYUI_PATH, the folder above, ~/comfy/ComfyUI): running standalone")
        return None
    host = inspect_host(folders[0])
    if not host.missing:
        return host
    say(f"{host.remedy}\nRunning standalone for now.")
    return None


def require_writable(folder: Path) -> None:
    """Make the folder of the image, before any work is done for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Problem(f"--output: the folder cannot be made ({error.strerror}): {folder}") from error
    if not os.access(folder, os.W_OK):
        raise Problem(f"--output: the folder cannot be written to; choose another: {folder}")


def make_image(options: argparse.Namespace) -> int:
    require_writable(options.output.parent)
    host = usable_host(options)
    ran = image_with_host(host, options) if host else image_standalone(options)
    say(f"image: {options.output}")
    say(f"made by: {ran}")
    return 0


# ---- the tests ------------------------------------------------------------------------------------------------------

def browser_program() -> str | None:
    """Chromium or Chrome: $CHROMIUM, the search path, the usual places."""
    named = [os.environ.get("CHROMIUM", ""), *map(shutil.which, ("chromium", "chromium-browser", "google-chrome")),
             *BROWSERS]
    return next((place for place in named if place and Path(place).is_file()), None)


def run_tests(options: argparse.Namespace) -> int:
    """Set up `.venv` for tests, run every tier that can run, sum up."""
    python = prepare("test")
    hosts = [inspect_host(path) for path in host_folders(options.comfyui, all_of_them=True)]
    sys.path.insert(0, str(ROOT / "tests"))
    from tiers import run_tiers
    return run_tiers(python, hosts, browser_program(), options.tier, slow=not options.fast)


# ---- the command line -----------------------------------------------------------------------------------------------

def size(text: str) -> tuple[int, int]:
    """`width x height` in pixels."""
    found = re.fullmatch(r"(\d+)x(\d+)", text.lower())
    sides = (int(found[1]), int(found[2])) if found else (0, 0)
    if min(sides) < 16 or any(side % 16 for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: WIDTHxHEIGHT in multiples of 16, such as 128x128")
    return sides


def png(text: str) -> Path:
    """An absolute path that ends in .png."""
    path = Path(text).expanduser().resolve()
    if path.suffix.lower() != ".png" or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} must be a file name that ends in .png")
    return path


def existing(text: str) -> Path:
    """An absolute path to a file that is there."""
    path = Path(text).expanduser().resolve()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return path


def share(text: str) -> float:
    """A number from 0 to 10."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 10:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number from 0 to 10")
    return value


def natural(low: int, high: int) -> Callable[[str], int]:
    """A whole number from low to high."""
    def parse(text: str) -> int:
        if not text.isdigit() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from {low} to {high}")
        return int(text)
    return parse


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", metavar="PATH", help="the ComfyUI to use; default: one found on this machine")
    if argv[:1] == ["test"]:
        parser.prog += " test"
        parser.add_argument("--tier", action="append", choices=("core", "host", "browser"), help="run only this tier")
        parser.add_argument("--fast", action="store_true", help="skip tests marked slow")
        parser.set_defaults(job=run_tests)
        return parser.parse_args(argv[1:])
    parser.add_argument("prompt", nargs="?", help="the prompt; default: that of the workflow")
    parser.add_argument("--steps", type=natural(1, 8), default=4, help="sampling steps, 1 to 8, default 4")
    parser.add_argument("--seed", type=natural(0, 2**64 - 1), default=1, help="seed of the noise, default 1")
    parser.add_argument("--size", type=size, default=(128, 128), help="WIDTHxHEIGHT in pixels, default 128x128")
    parser.add_argument("--output", type=png, default=png("pixart.png"), help="PNG file to write, default pixart.png")
    parser.add_argument("--control", type=existing, metavar="IMAGE", help="image whose edges are followed")
    parser.add_argument("--edges", choices=EDGES, default="canny", help="edge detector; none: IMAGE is an edge "
                        "map already, white on black; invert: a drawing, black on white; default canny")
    parser.add_argument("--strength", type=share, default=1.0, help="strength of the control, 0 to 10, default 1")
    parser.add_argument("--standalone", action="store_true", help="do not use ComfyUI")
    parser.set_defaults(job=make_image)
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    if sys.version_info < (3, 10):      # noqa: UP036 - the user may start it with any Python
        sys.exit(f"Python 3.10 or newer is needed, this is {platform.python_version()}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))      # unwinds, so that a running host is stopped
    options = arguments(argv)
    try:
        return options.job(options)
    except Problem as problem:
        print(f"[quickstart] {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("[quickstart] interrupted; nothing is left running", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
