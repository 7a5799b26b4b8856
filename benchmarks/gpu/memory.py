"""Stage: the peak memory of images and trainings, with full-size random weights."""
import time
from functools import partial

import torch

from pixart.generation.pipeline import Pipeline
from pixart.generation.request import Request
from pixart.model.controlnet import Controlled, PixArtControlNet
from pixart.train.data import PreparedFolder
from pixart.train.loop import Training
from pixart.train.loop_config import LoopConfig
from pixart.train.objectives import Objective
from pixart.vae import decode

from ..instruments.cases import Case
from ..instruments.networks import autoencoder, controlnet, encoded, given, transformer, with_random_weights
from ..instruments.notes import Notes
from ..instruments.setting import HALF, Absent, Setting, need
from ..instruments.timing import peak
from ..training_memory import Case as Computed
from .trainers import prepared

IMAGES, TRAININGS = "Memory of images", "Memory of trainings"
# As in benchmarks/training_memory.py, whose figures are computed beside these.
RECIPES = {"LCM distillation, all weights, 1024 px, batch 12": Computed(),
           "LoRA, rank 32, 1024 px, batch 4": Computed(method="lora", batch=4),
           "ControlNet, 13 blocks, 1024 px, batch 4": Computed(method="controlnet", batch=4),
           "LCM-LoRA, rank 32, 1024 px, batch 16": Computed(method="lcm-lora", batch=16)}
DISTILLATION, BUDGET = next(iter(RECIPES)), 32.0
ROOM = {"lcm": 30, "lora": 14, "controlnet": 16, "lcm-lora": 24}      # GiB that a card must have for it


def cases(setting: Setting) -> dict[str, Case]:
    found: dict[str, Case] = {DISTILLATION: partial(training, DISTILLATION)}
    found |= {"decode": decoding, "images": images, "control": control}
    return found | {title: partial(training, title) for title in RECIPES if title != DISTILLATION}


def training(title: str, setting: Setting, notes: Notes) -> None:
    """Two steps of the real loop: Adam has its moments from the second on."""
    recipe = RECIPES[title]
    need("accelerate")
    if setting.cuda and torch.cuda.mem_get_info()[0] < ROOM[recipe.method] * 2 ** 30:
        raise Absent(f"{torch.cuda.mem_get_info()[0] / 2 ** 30:.0f} GiB of the card are free, "
                     f"{ROOM[recipe.method]} are needed")
    config, batch = setting.config(), 2 if setting.tiny else recipe.batch
    data = prepared(setting.work / "memory", config, setting.pixels(recipe.side) // 8)
    model, objective = parts(recipe.method, setting, data)
    how = LoopConfig(steps=2, batch=batch, learning_rate=1e-5, precision="bf16", recompute=True)
    run = Training(model.to(setting.device), objective, data, how)
    seconds = []
    for number in range(2):
        started = time.perf_counter()
        run.step(number)
        if setting.cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    found = peak(setting)
    notes.row(TRAININGS, training=title, batch=batch, **{"a step s": seconds[-1]}, **found)
    if setting.cuda and title == DISTILLATION:
        notes.aim(f"{title}, peak held by the allocator", (found["reserved GiB"] or 0) * 2 ** 30 / 1e9, BUDGET, "GB")


def parts(method: str, setting: Setting, data: PreparedFolder) -> tuple[torch.nn.Module, Objective]:
    """What is trained, and its objective; teacher and base in 16 bits, as the recipes have them."""
    from pixart.train.lcm_lora import ConsistencyLora
    from pixart.train.lora import add_lora
    from pixart.train.objectives import Consistency, ControlDiffusion, Diffusion
    frozen = transformer(setting.config(), torch.bfloat16, setting.device)
    if method == "lcm":
        student = transformer(setting.config(), torch.float32, setting.device).requires_grad_(True)
        return student, Consistency(data, frozen)
    if method == "controlnet":
        copies = PixArtControlNet(setting.config(), min(13, frozen.config.depth - 1), device=setting.device)
        return Controlled(frozen, with_random_weights(copies, 1).requires_grad_(True)), ControlDiffusion(data)
    need("peft")
    model = add_lora(frozen, 32, 8.0)
    return model, ConsistencyLora(data) if method == "lcm-lora" else Diffusion(data)


@torch.inference_mode()
def decoding(setting: Setting, notes: Notes) -> None:
    for name, dtype in {"fp32": torch.float32, **({} if setting.tiny else HALF)}.items():
        vae = autoencoder(setting.tiny, dtype, setting.device)
        for side, count in ((1024, 1), (1024, 4), (2048, 1)):
            setting.tidy()
            latents = torch.randn(count, 4, *[setting.pixels(side) // 8] * 2, device=setting.device)
            decode(vae, latents, 0.18215)
            notes.row(IMAGES, what=f"decode {count} of {side} px, autoencoder {name}", **peak(setting))


def images(setting: Setting, notes: Notes) -> None:
    """Four LCM steps, the weights included, text encoded before."""
    for side, count in ((1024, 1), (1024, 4), (2048, 1)):
        config = setting.config("sigma-2k" if side > 1024 else "alpha-1024")
        model = transformer(config, torch.float16 if setting.cuda else torch.float32, setting.device)
        setting.tidy()
        text = encoded(config, [120] * count)
        request = Request(("",) * count, height=setting.pixels(side), width=setting.pixels(side))
        Pipeline.of(model).sample(request, text, text)
        notes.row(IMAGES, what=f"sample {count} of {side} px, fp16", **peak(setting))
        del model


@torch.inference_mode()
def control(setting: Setting, notes: Notes) -> None:
    dtype = torch.float16 if setting.cuda else torch.float32
    config = setting.config()
    both = Controlled(transformer(config, dtype, setting.device),
                      controlnet(config, min(13, config.depth - 1), dtype, setting.device))
    inputs = given(config, [setting.pixels(1024) // 8] * 2, [120], setting.device, dtype)
    setting.tidy()
    both(**inputs, hint=inputs["latent"])
    notes.row(IMAGES, what="one pass with a ControlNet of 13 blocks, 1024 px, fp16", **peak(setting))


