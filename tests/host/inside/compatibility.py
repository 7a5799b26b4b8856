"""Runs rows of ../compatibility.json: a stock node between Load PixArt and the sampler, and what it does."""
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.samplers
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from support import condition, image, image_latent, latent, load, load_control, pack, text, vae
from torch import Tensor

STEPS = 6
COMPILERS = ("c++", "g++", "clang++", "cl")


def rows() -> list[dict[str, Any]]:
    """Those about nodes; without a compiler not those that need one."""
    every = json.loads((Path(__file__).parents[1] / "compatibility.json").read_text(encoding="utf-8"))
    compiling = any(map(shutil.which, COMPILERS))
    return [row for row in every if "node" in row and (compiling or row.get("needs") != "c++")]


ROWS = rows()


def call(name: str, inputs: dict[str, Any]) -> tuple:
    """Outputs of a stock node, whichever way its class is written."""
    import nodes
    kind = nodes.NODE_CLASS_MAPPINGS[name]
    if hasattr(kind, "define_schema"):
        made = kind.execute(**inputs)
        return tuple(made.args) if hasattr(made, "args") else tuple(made)
    made = getattr(kind(), kind.FUNCTION)(**inputs)
    return tuple(made.get("result", ())) if isinstance(made, dict) else tuple(made)


def scene() -> dict[str, Any]:
    """What a row may name as "@name", and what its results replace."""
    from facts_text import our_clip
    found = {"model": load("deep-1024"), "second": load("deep-1024"), "positive": condition(text(5)),
             "negative": condition(text(3, seed=7)), "empty": condition(text(1, seed=8)), "latent": latent(64, 64),
             "image_latent": image_latent(64, 64), "vae": vae(), "clip": our_clip(), "control": load_control(),
             "image": image(64, 64), "mask": torch.ones(1, 64, 64).tril(), "sampler_name": "euler",
             "scheduler": "normal", "cfg": 4.0, "denoise": 1.0}
    found["second"] = call("LoraLoaderModelOnly", {"model": found["second"], "lora_name": "tiny-lora.safetensors",
                                                   "strength_model": 1.0})[0]
    found["hooks"] = call("CreateHookLoraModelOnly", {"lora_name": "tiny-lora.safetensors", "strength_model": 1.0})[0]
    found["clip_vision"] = SimpleNamespace(image_embeds=torch.ones(1, 8))
    found["gligen"] = ModelPatcher(Gligen(), torch.device("cpu"), torch.device("cpu"))
    found["tonemap"] = call("LatentOperationTonemapReinhard", {"multiplier": 1.0})[0]
    found["masked"] = {**image_latent(64, 64), "noise_mask": torch.linspace(0, 1, 64).expand(1, 64, 64)}
    return found


class Gligen(torch.nn.Module):
    """What the host asks of a GLIGEN model."""

    dtype = torch.float32

    def set_position(self, shape: tuple, boxes: list, device: torch.device) -> Callable:
        return lambda x, options: x


def fill(value: Any, found: dict[str, Any]) -> Any:
    return found[value[1:]] if isinstance(value, str) and value.startswith("@") else value


def draw(found: dict[str, Any]) -> Tensor:
    """The stock custom sampling of a scene."""
    sampler = found.get("sampler") or comfy.samplers.sampler_object(found["sampler_name"])
    sigmas = found.get("sigmas")
    if sigmas is None:
        (sigmas,) = call("BasicScheduler", {"model": found["model"], "scheduler": found["scheduler"], "steps": STEPS,
                                            "denoise": found["denoise"]})
    guider = found.get("guider")
    if guider is None:
        (guider,) = call("CFGGuider", {"model": found["model"], "positive": found["positive"],
                                       "negative": found["negative"], "cfg": found["cfg"]})
    (noise,) = call("RandomNoise", {"noise_seed": 5})
    made = call("SamplerCustomAdvanced", {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": sigmas,
                                          "latent_image": found["latent"]})
    return made[0]["samples"]


def run_row(row: dict[str, Any]) -> Tensor:
    found = {**scene(), **row.get("with", {})}
    found = {name: fill(value, found) for name, value in found.items()}
    if row.get("after"):
        found["samples"] = {"samples": draw(found)}
    for each in (row, *row.get("then", ())):
        made = call(each["node"], {name: fill(value, found) for name, value in each["inputs"].items()})
        found.update(zip(each["gives"], made))
    if row.get("reopen"):
        saved = max(Path(folder_paths.get_output_directory()).glob(f"{row['reopen']}_*.safetensors"))
        found["model"] = pack("nodes.host.model").load_model(str(saved), "auto", "fp32")
    return found["made"] if row.get("after") else draw(found)


@functools.cache
def plain(settings: str) -> Tensor:
    """The image without the node, with the same settings beside it."""
    found = {**scene(), **json.loads(settings)}
    return draw({name: fill(value, found) for name, value in found.items()})


def there(row: dict[str, Any]) -> bool:
    import nodes
    return row["node"] in nodes.NODE_CLASS_MAPPINGS


def outcome(row: dict[str, Any]) -> tuple[str, str]:
    """works, same (as without the node), refused or absent; and what was said."""
    if not there(row):
        return "absent", ""
    try:
        got = run_row(row)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        return "refused", str(error)
    if not torch.isfinite(got).all():
        return "not finite", ""
    without = plain(json.dumps(row.get("with", {})))
    return ("same" if torch.equal(got, without) else "works"), ""
