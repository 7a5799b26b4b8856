"""A training inside the host: data from the graph or a folder, `pixart.train` on it, progress and previews on the node.

The host runs nodes in inference mode, whose tensors have no gradients, so everything here happens outside of it, on
copies. One step is never cut short: an interruption is noticed after it, saved, and passed on to the host.
"""
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....pixart.model.transformer import PixArtTransformer
from ....pixart.resolution import nearest_class
from ....pixart.train.data import PreparedFolder
from ....pixart.train.job import TrainingJob
from ....pixart.train.jobs import controlnet_job, lora_job
from ....pixart.train.loop import STATE, train
from ....pixart.train.loop_config import LoopConfig
from ....pixart.train.method_settings import ControlMethod, LcmLoraMethod, LoraMethod
from ....pixart.train.precision import fitting_precision, saved_precision, widest
from ....pixart.train.settings import OutputSettings
from ....pixart.train.starting import check_fit
from ....pixart.train.state import peek_state
from ..bare import bare_transformer
from ..guest import advance_bar, bar, make_room, memory_handed_back, stoppable
from ..node_text import RunningText
from ..pt_dit import holds_pt_dit
from ..text import is_ours
from .data import TrainingImages, data_folder
from .packages import check_packages
from .view import TrainingWatch, last_sheet, preview_of
from .wish import TrainingWish

WARMUP = 50


@dataclass(frozen=True)
class Trained:
    """file: the weights. sheet: the last preview (H, W, 3) in 0..1, and its file; None where none was asked for."""

    file: Path
    sheet: Tensor | None
    image: Path | None


def train_on(model: Any, wish: TrainingWish, images: TrainingImages, clip: Any, vae: Any) -> Trained:
    """Train, or go on with the training of this name. Raises the host's own exception when it is interrupted.

    ImportError, ValueError, FileNotFoundError, FileExistsError, OSError for what is wrong, before any work.
    """
    check_packages(wish.method)
    if not is_ours(model):
        if holds_pt_dit(model):
            raise ValueError("this MODEL is a PT-DiT, which this node cannot train; use python -m pixart train pt-dit")
        raise ValueError("training needs the MODEL of Load PixArt; this one comes from another loader")
    if wish.file.exists() and not (wish.run / STATE).exists():
        raise FileExistsError(f"{wish.file} exists and no training of that name is at hand; choose another name")
    devices = [model.load_device] if model.load_device.type == "cuda" else []
    with (torch.inference_mode(False), torch.enable_grad(), stoppable(), memory_handed_back(),
          torch.random.fork_rng(devices)):
        return _train(model, wish, images, clip, vae)


def _train(model: Any, wish: TrainingWish, images: TrainingImages, clip: Any, vae: Any) -> Trained:
    config = model.model.model_config.pixart
    side = nearest_class(config.resolution, config.resolution) if wish.resolution == "auto" else int(wish.resolution)
    say, device = RunningText(), model.load_device
    say("reading the model", always=True)
    loop = loop_config(wish, device, widest(model.model.diffusion_model))
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(loop.precision, torch.float32)
    base = bare_transformer(model, torch.float32 if device.type == "cpu" else dtype, side)
    folder = data_folder(model, wish, images, clip, vae, config, side, say)
    if advance_bar(bar(wish.steps), 0, wish.steps):
        raise KeyboardInterrupt
    say("getting ready to train", always=True)
    data = PreparedFolder(folder, need_hints=wish.method == "controlnet")
    check_fit(config, data)
    job = job_of(base, wish, data)
    preview = preview_of(wish, job, data, clip, vae, model)
    make_room(device)
    wish.file.parent.mkdir(parents=True, exist_ok=True)
    watch = [TrainingWatch(job, wish, loop.save_every, say), *([preview] if preview else [])]
    average = train(job.model, job.objective, data, loop, wish.run, watch=watch,
                    settings={**job.facts, "method": wish.method, "data": folder.name}, cpu=device.type == "cpu")
    job.save(average)
    say(f"trained {wish.steps} steps: {wish.file.name}", always=True)
    return Trained(wish.file, *last_sheet(wish.run / "previews")) if preview else Trained(wish.file, None, None)


def loop_config(wish: TrainingWish, device: torch.device, width: int) -> LoopConfig:
    """Precision: that of the training to go on with, or what suits device and width; trained weights stay float32."""
    precision = saved_precision(peek_state(wish.run / STATE)) or fitting_precision(device, width)
    return LoopConfig(steps=wish.steps, batch=wish.batch, learning_rate=wish.learning_rate, warmup=WARMUP,
                      ema=0.99 if wish.method == "controlnet" else 0.0, seed=wish.start_seed,
                      precision=precision,
                      save_every=max(25, wish.steps // 10), log_every=max(1, min(50, wish.steps // 10)),
                      recompute=wish.save_memory)


def job_of(base: PixArtTransformer, wish: TrainingWish, data: PreparedFolder) -> TrainingJob:
    """Network, objective and how the result is written, as the command line has them."""
    output = OutputSettings(wish.run, wish.file)
    if wish.method == "controlnet":
        return controlnet_job(base, ControlMethod(blocks=min(wish.blocks, base.config.depth - 1)), data, output,
                          wish.start_seed)
    method = LoraMethod(rank=wish.rank) if wish.method == "lora" else LcmLoraMethod(rank=wish.rank,
                                                                                   guidance=wish.guidance)
    return lora_job(base, method, data, output, wish.start_seed)


# -- for the graph -----------------------------------------------------------------------------------------------------

def result_of(model: Any, wish: TrainingWish, trained: Trained) -> dict:
    """What the node returns: outputs that this method does not have are blocked, with the reason where that helps."""
    import folder_paths
    from comfy_execution.graph_utils import ExecutionBlocker

    from ..control import load_control_net
    from ..lora import apply_lora
    control: Any = ExecutionBlocker(f"PixArt Train made a LoRA ({wish.method}), no ControlNet; connect its MODEL")
    if wish.method == "controlnet":
        control = load_control_net(trained.file, "auto")
    else:
        model, _ = apply_lora(model, trained.file, 1.0)
    sheet = ExecutionBlocker(None) if trained.sheet is None else trained.sheet[None]
    shown = {}
    if trained.image is not None:
        place = trained.image.parent.relative_to(folder_paths.get_output_directory()).as_posix()
        shown = {"images": [{"filename": trained.image.name, "subfolder": place, "type": "output"}]}
    return {"ui": shown, "result": (model, control, sheet, str(trained.file))}
