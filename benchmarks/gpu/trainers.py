"""Stage: does every trainer take a step on the device, in every precision, and does it compute the CPU's loss?"""
from contextlib import suppress
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from pixart.config import PixArtConfig
from pixart.prepare.shards import shard_path, write_shard
from pixart.train.data import PreparedFolder
from pixart.train.loop import train, train_averages
from pixart.train.loop_config import LoopConfig
from pixart.weights.safetensors_file import write_tensors

from ..instruments.cases import Case
from ..instruments.networks import distance
from ..instruments.notes import Notes
from ..instruments.setting import Absent, Setting, need
from .methods import METHODS, Trained
from .models import ALPHA

BATCH, SIDE = 4, 16
PATIENCE = 24                   # steps in which fp16's loss scale must have fallen far enough


def prepared(folder: Path, config: PixArtConfig, side: int, count: int = 8) -> PreparedFolder:
    """Random training data as `pixart prepare` and `pixart pairs` write it: latents of side x side, edge maps, noise,
    captions."""
    if not (folder / "null.safetensors").exists():
        generator = torch.Generator().manual_seed(0)
        folder.mkdir(parents=True, exist_ok=True)
        tokens, width = config.caption_tokens, config.caption_width
        latents, hints, noise = (torch.randn(count, 4, side, side, generator=generator).half() for _ in range(3))
        write_shard(shard_path(folder, (side, side), 0), {
            "latents": latents, "hints": hints, "noise": noise, "mask": torch.ones(count, tokens, dtype=torch.uint8),
            "features": torch.randn(count, tokens, width, generator=generator).half(),
            "size": torch.full((count, 2), 8.0 * side), "aspect": torch.ones(count)}, {})
        write_tensors(folder / "null.safetensors", {"features": torch.randn(1, width, generator=generator),
                                                    "mask": torch.ones(1, dtype=torch.uint8)})
    return PreparedFolder(folder, need_hints=True)


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


def trained_by(name: str, setting: Setting) -> Trained:
    return METHODS[name](config(setting), prepared(setting.work / "trainers", config(setting), SIDE))


def method(name: str, setting: Setting, notes: Notes) -> None:
    """The same loss as on the CPU, then steps in every precision until all that is trained has moved."""
    check = f"trainer {name}"
    trained = trained_by(name, setting)
    wanted, found = (trained.loss_on(device, BATCH) for device in ("cpu", setting.device))
    notes.check(check, "loss in fp32, against the CPU", abs(found - wanted) / abs(wanted), 1e-4)
    for precision, limit in (("no", 1e-4), ("bf16", 0.1), ("fp16", 0.1)):
        if precision == "fp16" and not setting.cuda:
            notes.absent(f"{check}, fp16", "the scaler is CUDA's")
            continue
        losses, still = until_moved(trained.copy(), settings(precision, recompute=precision != "no"))
        if trained.fake is None:            # of two players the loop reports only the student's loss
            error = abs(losses[0] - wanted) / abs(wanted)
            notes.check(check, f"first loss, precision {precision}, against fp32", error, limit)
        moved(check, f"precision {precision}", losses, still, notes)


def moved(check: str, case: str, losses: list[float], still: list[str], notes: Notes) -> None:
    found = f"after {len(losses)} steps" if not still else f"{len(still)} do not, such as {still[0]}"
    notes.holds(check, f"all trained tensors move, {case}", not still, found)


def until_moved(trained: Trained, how: LoopConfig) -> tuple[list[float], list[str]]:
    """Train until every trained tensor has moved; the losses, and the tensors that never did."""
    before = {name: p.detach().clone().cpu() for name, p in trained.trainable().items()}
    losses: list[float] = []
    still = list(before)

    def look(step: int, loss: float) -> None:
        losses.append(loss)
        now = trained.trainable()
        still[:] = [name for name in still if torch.equal(now[name].detach().cpu(), before[name])]
        if not still:
            raise KeyboardInterrupt         # which tells the loop to stop

    with TemporaryDirectory() as folder, suppress(KeyboardInterrupt):
        train_averages(trained.model, trained.objective, trained.data, how, folder, report=look, make=trained.kind)
    return losses, still


def resumed(setting: Setting, notes: Notes) -> None:
    """Three steps at once, and two, a state on disk, fresh objects and the third: as if never stopped."""
    averages = []
    for stops in ((3,), (2, 3)):
        with TemporaryDirectory() as folder:
            for steps in stops:
                trained = trained_by("diffusion", setting)
                average = train(trained.model, trained.objective, trained.data, settings("bf16", steps=steps),
                                folder)
        averages.append(torch.cat([p.detach().flatten() for p in average.parameters()]))
    notes.check("resume", "average after 3 steps, bf16", distance(averages[1], averages[0]), 1e-4)


def compiled(setting: Setting, notes: Notes) -> None:
    """Blocks compiled and random numbers made on the device, the fastest way to train on a GPU."""
    known = {field.name for field in fields(LoopConfig)} & {"compile", "random_on_device"}
    if not setting.cuda or not known:
        raise Absent("compiling pays on CUDA only")
    losses, still = until_moved(trained_by("lcm", setting), settings("bf16", **dict.fromkeys(known, True)))
    moved("trainer lcm", f"bf16, {' and '.join(sorted(known))}", losses, still, notes)


def optimizer(name: str, setting: Setting, notes: Notes) -> None:
    for package in {"came": ["came_pytorch"], "adamw8bit": ["bitsandbytes"]}.get(name, []):
        need(package)
    if name == "adamw8bit" and not setting.cuda:
        raise Absent("8-bit moments are tested on CUDA")
    # muon is two optimizers, which fp16's scaler must move together
    for precision in ("bf16", "fp16") if name == "muon" and setting.cuda else ("bf16",):
        losses, still = until_moved(trained_by("diffusion", setting), settings(precision, optimizer=name))
        moved(f"optimizer {name}", precision, losses, still, notes)
