"""Stage: a real ComfyUI on the device, with full-size random weights, over its queue.

The delta workflow of this repository as it is; again without the text encoder; with weights in fp8; guided sampling by
the host's own sampler; cancelled; memory given back; and with --lowvram.
"""
import json
import time
from copy import deepcopy
from functools import partial
from pathlib import Path

from pixart.mini import SHIPPED

from ..instruments.cases import Case
from ..instruments.files import t5_folder, text_width, transformer_file, vae_folder
from ..instruments.notes import Notes
from ..instruments.setting import Absent, Setting, need
from .server import PACK, ROOT, Server

TABLE = "The host (ComfyUI) over its queue, 1024 px, full-size random weights"
WORKFLOW = ROOT / "workflows" / "api" / "delta-1024-lcm-8bit-t5.json"
LEFT_OVER = 1.0                 # GiB that may stay in use after unloading everything
WORKED = "host-worked"          # a file that says that the workflow ran
PATIENCE = 60.0                 # seconds for one prompt


def cases(setting: Setting) -> dict[str, Case]:
    return {"host": partial(session, ()), "host without its memory manager": instead,
            "host --lowvram": partial(short_session, ("--lowvram",))}


def base_folder(setting: Setting) -> Path:
    """Models, the pack and nothing else, as the workflow names them."""
    base = setting.work / "comfyui"
    if base.exists():
        return base
    model = transformer_file(setting, setting.config(caption_width=text_width(setting)), "alpha-1024")
    try:
        vae = SHIPPED.vae if setting.tiny else vae_folder(setting) / "diffusion_pytorch_model.safetensors"
    except Absent:
        vae = SHIPPED.vae
    nodes = read_workflow()
    links = {base / "models" / "diffusion_models" / nodes["1"]["inputs"]["file"]: model,
             base / "models" / "text_encoders" / nodes["2"]["inputs"]["file"]: t5_folder(setting) / "model.safetensors",
             base / "models" / "vae" / nodes["3"]["inputs"]["vae_name"]: vae,
             base / "custom_nodes" / PACK: ROOT}
    for place, target in links.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target.resolve(), target_is_directory=target.is_dir())
    return base


def read_workflow() -> dict[str, dict]:
    return json.loads(WORKFLOW.read_text("utf-8"))


def workflow(setting: Setting, seed: int, **changed: object) -> dict[str, dict]:
    """As in the repository; 16 bits where bitsandbytes is missing. `changed`: inputs of the model's loader."""
    nodes = read_workflow()
    nodes["1"]["inputs"] |= {"variant": "alpha-1024", **changed}
    nodes["6"]["inputs"]["seed"] = seed
    try:
        need("bitsandbytes")
    except Absent:
        nodes["2"]["inputs"]["bits"] = "16"
    if setting.tiny:
        nodes["4"]["inputs"]["resolution"] = "128"
        nodes["2"]["inputs"]["bits"] = "16"
    return nodes


def guided(nodes: dict[str, dict], steps: int, batch: int) -> dict[str, dict]:
    """The same image by the host's own sampler, with guidance."""
    nodes = deepcopy(nodes)
    nodes["4"]["inputs"]["batch_size"] = batch
    nodes["9"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 0], "text": "blurred"}}
    nodes["6"] = {"class_type": "KSampler", "inputs": {
        "model": ["1", 0], "seed": 1, "steps": steps, "cfg": 4.5, "sampler_name": "dpmpp_2m", "scheduler": "normal",
        "positive": ["5", 0], "negative": ["9", 0], "latent_image": ["4", 0], "denoise": 1.0}}
    return nodes


def session(options: tuple[str, ...], setting: Setting, notes: Notes) -> None:
    with started(options, setting, notes) as server:
        before = server.used()["used GiB"]
        if not ask(server, "delta, 4 LCM steps, all files read", workflow(setting, 1), setting, notes):
            raise RuntimeError("the workflow failed; nothing else was tried")
        (setting.work / WORKED).touch()
        ask(server, "again with another seed: no text encoder", workflow(setting, 2), setting, notes)
        ask(server, "once more", workflow(setting, 3), setting, notes)
        ask(server, "20 steps with guidance, the host's sampler", guided(workflow(setting, 1), 20, 1), setting, notes)
        cancelled(server, setting, notes)
        ask(server, "after the cancelled run", workflow(setting, 4), setting, notes)
        given_back(server, before, notes)
        ask(server, "weights in fp8", workflow(setting, 5, weight_dtype="fp8_e4m3fn"), setting, notes)
        ask(server, "weights in fp8, again", workflow(setting, 6, weight_dtype="fp8_e4m3fn"), setting, notes)


def instead(setting: Setting, notes: Notes) -> None:
    """The whole session again without the manager that gives layers their memory one by one, if that is what failed."""
    if not setting.cuda or (setting.work / WORKED).exists():
        raise Absent("it works with it")
    session(("--disable-dynamic-vram",), setting, notes)


def short_session(options: tuple[str, ...], setting: Setting, notes: Notes) -> None:
    if not setting.cuda:
        raise Absent("without a GPU there is no memory of it to save")
    with started(options, setting, notes) as server:
        for seed, what in ((1, "all files read"), (2, "again with another seed")):
            ask(server, f"{' '.join(options)}: delta, 4 LCM steps, {what}", workflow(setting, seed), setting, notes)


def started(options: tuple[str, ...], setting: Setting, notes: Notes) -> Server:
    options += ("--cpu",) if setting.tiny else ()
    host, base = setting.host(), base_folder(setting)
    try:
        server = Server(host, base, options, max(20.0, setting.left() - 5)).start()
    except RuntimeError as error:       # its own memory manager may not get along with the driver
        if setting.tiny:
            raise
        notes.failed(f"host, start {' '.join(options)}".strip(), error)
        options += ("--disable-dynamic-vram",)
        server = Server(host, base, options, max(20.0, setting.left() - 5)).start()
    notes.row(TABLE, what=f"start {' '.join(options)}".strip(), seconds=server.start_seconds, **server.used())
    if any("IMPORT FAILED" in line and PACK in line for line in server.log.splitlines()):
        server.stop()
        raise RuntimeError(f"the host could not import the pack: {server.end_of_log()}")
    return server


def ask(server: Server, what: str, prompt: dict, setting: Setting, notes: Notes) -> bool:
    """Queue a prompt, wait, and note the result; returns whether it succeeded. RuntimeError where it did not end."""
    end, taken, wrong = server.follow(server.queue(prompt), min(PATIENCE, max(5.0, setting.left())))
    notes.row(TABLE, what=what, seconds=taken, **server.used())
    notes.holds("host", what, end == "execution_success", wrong[:200])
    if end == "execution_error":
        server.end_of_log()
    return end == "execution_success"


def cancelled(server: Server, setting: Setting, notes: Notes) -> None:
    prompt_id = server.queue(guided(workflow(setting, 9), 1000, 4))
    time.sleep(2.0)
    asked = time.monotonic()
    server.post("/interrupt", {})
    end, _, wrong = server.follow(prompt_id, PATIENCE)
    taken = time.monotonic() - asked
    notes.row(TABLE, what="a long run, cancelled after 2 s: until it ended", seconds=taken, **server.used())
    notes.holds("host", "cancelled run", end == "execution_interrupted", wrong or end)


def given_back(server: Server, before: float, notes: Notes) -> None:
    """What is in use after everything was asked to be unloaded."""
    server.post("/free", {"unload_models": True, "free_memory": True})
    until = time.monotonic() + 10
    while server.used()["used GiB"] > before + LEFT_OVER and time.monotonic() < until:
        time.sleep(0.2)
    found = server.used()
    notes.row(TABLE, what="memory asked back", **found)
    kept = found["used GiB"] - before
    notes.check("host", f"memory given back, GiB above {before:.2f} at the start", kept, LEFT_OVER)
