"""Stage: does every trainer take a step on the device, in every precision, and does it compute the CPU's loss?"""
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from pixart.config import PixArtConfig
from pixart.model.controlnet import Controlled, PixArtControlNet
from pixart.model.transformer import PixArtTransformer
from pixart.prepare.shards import shard_path, write_shard, write_tensors
from pixart.train.average import averaged_copy
from pixart.train.data import PreparedFolder
from pixart.train.loop import train
from pixart.train.loop_config import LoopConfig
from pixart.train.objectives import Consistency, ControlDiffusion, Diffusion, Objective

from ..instruments.cases import Case
from ..instruments.networks import distance, drawn
from ..instruments.notes import Notes
from ..instruments.setting import Absent, Setting, need
from .models import ALPHA

BATCH, SIDE = 4, 16
PATIENCE = 24                   # steps in which fp16's scale of the loss must have come down far enough
Make = Callable[[PixArtConfig, PreparedFolder], tuple[nn.Module, Objective]]


def prepared(folder: Path, config: PixArtConfig, side: int, count: int = 8) -> PreparedFolder:
    """Random training data as `pixart prepare` writes it: latents of side x side, edge maps, captions."""
    if not (folder / "null.safetensors").exists():
        generator = torch.Generator().manual_seed(0)
        folder.mkdir(parents=True, exist_ok=True)
        tokens, width = config.caption_tokens, config.caption_width
        latents, hints = (torch.randn(count, 4, side, side, generator=generator).half() for _ in range(2))
        write_shard(shard_path(folder, (side, side), 0), {
            "latents": latents, "hints": hints, "mask": torch.ones(count, tokens, dtype=torch.uint8),
            "features": torch.randn(count, tokens, width, generator=generator).half(),
            "size": torch.full((count, 2), 8.0 * side), "aspect": torch.ones(count)}, {})
        write_tensors(folder / "null.safetensors", {"features": torch.randn(1, width, generator=generator),
                                                    "mask": torch.ones(1, dtype=torch.uint8)})
    return PreparedFolder(folder, need_hints=True)


def fresh(config: PixArtConfig) -> PixArtTransformer:
    return drawn(PixArtTransformer(config), 1)


def diffusion(config: PixArtConfig, data: PreparedFolder) -> tuple[nn.Module, Objective]:
    return fresh(config).requires_grad_(True), Diffusion(data)


def lcm(config: PixArtConfig, data: PreparedFolder) -> tuple[nn.Module, Objective]:
    return fresh(config).requires_grad_(True), Consistency(data, fresh(config))


def controlnet(config: PixArtConfig, data: PreparedFolder) -> tuple[nn.Module, Objective]:
    base = fresh(config)
    network = drawn(PixArtControlNet(config, config.depth // 2), 2).requires_grad_(True)
    return Controlled(base, network), ControlDiffusion(data)


def adapted(config: PixArtConfig, data: PreparedFolder, consistency: bool = False, dora: bool = False
            ) -> tuple[nn.Module, Objective]:
    need("peft")
    from pixart.train.lcm_lora import ConsistencyLora
    from pixart.train.lora import add_lora

    from .models import drawn_ups
    model = add_lora(fresh(config), 4, 4.0, dora=dora)
    drawn_ups(model)            # after the first step only; before it half the adapters have no gradient
    return model, ConsistencyLora(data) if consistency else Diffusion(data)


METHODS: dict[str, Make] = {"diffusion": diffusion, "lcm": lcm, "controlnet": controlnet, "lora": adapted,
                            "dora": partial(adapted, dora=True), "lcm-lora": partial(adapted, consistency=True)}


def cases(setting: Setting) -> dict[str, Case]:
    torch.backends.cudnn.allow_tf32 = False
    found: dict[str, Case] = {f"trainer {name}": partial(method, name) for name in METHODS}
    found |= {"resume": resumed, "compiled": compiled}
    found |= {f"optimizer {name}": partial(optimizer, name) for name in ("muon", "came", "adamw8bit")}
    return found


def config(setting: Setting) -> PixArtConfig:
    return replace(ALPHA, caption_tokens=8, depth=2, hidden=48) if setting.tiny else replace(ALPHA, caption_tokens=8)


def settings(precision: str, **changes: Any) -> LoopConfig:
    return LoopConfig(**{"steps": PATIENCE, "batch": BATCH, "learning_rate": 1e-3, "warmup": 1, "ema": 0.9,
                         "precision": precision, "log_every": 1, **changes})


def parts(name: str, setting: Setting) -> tuple[nn.Module, Objective, PreparedFolder]:
    data = prepared(setting.work / "trainers", config(setting), SIDE)
    return *METHODS[name](config(setting), data), data


def method(name: str, setting: Setting, notes: Notes) -> None:
    """The same loss as on the CPU, then steps in every precision until all that is trained has moved."""
    check = f"trainer {name}"
    model, objective, data = parts(name, setting)
    wanted, found = (loss_on(device, model, objective, data) for device in ("cpu", setting.device))
    notes.check(check, "loss in fp32, against the CPU", abs(found - wanted) / abs(wanted), 1e-4)
    for precision, limit in (("no", 1e-4), ("bf16", 0.1), ("fp16", 0.1)):
        if precision == "fp16" and not setting.cuda:
            notes.absent(f"{check}, fp16", "the scaler is CUDA's")
            continue
        losses, still = until_moved(deepcopy(model), objective, data, settings(precision, recompute=precision != "no"))
        error = abs(losses[0] - wanted) / abs(wanted)
        notes.check(check, f"first loss, precision {precision}, against fp32", error, limit)
        moved(check, f"precision {precision}", losses, still, notes)


def moved(check: str, case: str, losses: list[float], still: list[str], notes: Notes) -> None:
    found = f"after {len(losses)} steps" if not still else f"{len(still)} do not, such as {still[0]}"
    notes.holds(check, f"all trained tensors move, {case}", not still, found)


def loss_on(device: str, model: nn.Module, objective: Objective, data: PreparedFolder) -> float:
    """Of step 0, by the objective alone."""
    from pixart.train.draws import generator_for
    from pixart.train.loop import place_networks
    network = deepcopy(model).to(device).train()
    place_networks(objective, torch.device(device))
    generator = generator_for(0, 0, slice(0, BATCH), BATCH)
    batch = data.batch(generator, BATCH).to(torch.device(device))
    with torch.no_grad():
        return objective(network, averaged_copy(network), batch, generator).item()


def until_moved(model: nn.Module, objective: Objective, data: PreparedFolder, how: LoopConfig
                ) -> tuple[list[float], list[str]]:
    """Train until every trained tensor has moved; the losses, and the tensors that never did."""
    before = {name: p.detach().clone().cpu() for name, p in model.named_parameters() if p.requires_grad}
    losses: list[float] = []
    still = list(before)

    def look(step: int, loss: float) -> None:
        losses.append(loss)
        now = dict(model.named_parameters())
        still[:] = [name for name in still if torch.equal(now[name].detach().cpu(), before[name])]
        if not still:
            raise KeyboardInterrupt         # the loop's way to be told that it is enough

    with TemporaryDirectory() as folder, suppress(KeyboardInterrupt):
        train(model, objective, data, how, folder, report=look)
    return losses, still


def resumed(setting: Setting, notes: Notes) -> None:
    """Three steps at once, and two, a state on disk, fresh objects and the third: as if never stopped."""
    averages = []
    for stops in ((3,), (2, 3)):
        with TemporaryDirectory() as folder:
            for steps in stops:
                model, objective, data = parts("diffusion", setting)
                average = train(model, objective, data, settings("bf16", steps=steps), folder)
        averages.append(torch.cat([p.detach().flatten() for p in average.parameters()]))
    notes.check("resume", "average after 3 steps, bf16", distance(averages[1], averages[0]), 1e-4)


def compiled(setting: Setting, notes: Notes) -> None:
    """Blocks compiled and random numbers made on the device, as a GPU is trained best."""
    known = {field.name for field in fields(LoopConfig)} & {"compile", "random_on_device"}
    if not setting.cuda or not known:
        raise Absent("compiling pays on CUDA only")
    model, objective, data = parts("lcm", setting)
    losses, still = until_moved(model, objective, data, settings("bf16", **dict.fromkeys(known, True)))
    moved("trainer lcm", f"bf16, {' and '.join(sorted(known))}", losses, still, notes)


def optimizer(name: str, setting: Setting, notes: Notes) -> None:
    for package in {"came": ["came_pytorch"], "adamw8bit": ["bitsandbytes"]}.get(name, []):
        need(package)
    if name == "adamw8bit" and not setting.cuda:
        raise Absent("8-bit moments are tested on CUDA")
    model, objective, data = parts("diffusion", setting)
    losses, still = until_moved(model, objective, data, settings("bf16", optimizer=name))
    moved(f"optimizer {name}", "bf16", losses, still, notes)
