"""A training inside the host: data from the graph or a folder, `pixart.train` on it, progress and previews on the node.

The host runs nodes in inference mode, whose tensors know no gradients, so everything here happens outside of it, on
copies. One step is never cut short: an interruption is noticed after it, saved, and passed on to the host.
"""
import gc
import hashlib
import importlib.util
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...pixart.config import PixArtConfig
from ...pixart.model.dtype_probe import faster_dtype
from ...pixart.prepare.families import FAMILIES, Family
from ...pixart.prepare.run import Job as Preparation
from ...pixart.prepare.run import prepare
from ...pixart.prepare.shards import shard_paths
from ...pixart.resolution import nearest_class
from ...pixart.train.data import PreparedFolder
from ...pixart.train.jobs import Job, adapted, check_fit, controlled
from ...pixart.train.loop import STATE, LoopConfig, train
from ...pixart.train.report import Record
from ...pixart.train.settings import ControlMethod, LcmLoraMethod, LoraMethod, OutputSettings
from .bare import bare_transformer
from .encoders import ClipEncoder, networks_of, vae_decoder
from .folders import HED_FILE, hed_path
from .text import is_ours

if TYPE_CHECKING:
    from PIL.Image import Image

    from ...pixart.train.preview import Preview, Subject

logger = logging.getLogger(__name__)

NEEDED = {"lora": ("accelerate", "peft"), "lcm-lora": ("accelerate", "peft"), "controlnet": ("accelerate",)}
FOLDERS = {"lora": "loras", "lcm-lora": "loras", "controlnet": "controlnet"}      # of the host, for what is trained
WARMUP = 50


@dataclass(frozen=True)
class Wish:
    """What the user set on the node."""

    method: str
    name: str
    steps: int
    batch: int
    learning_rate: float
    rank: int
    blocks: int
    guidance: float
    edges: str
    resolution: str
    save_memory: bool
    start_seed: int
    preview_prompt: str
    preview_every: int

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w .+-]*", self.name):
            raise ValueError(f"{self.name!r} cannot be the name of a file; use letters, digits, spaces and . + - _")

    @property
    def file(self) -> Path:
        """Where the trained weights go."""
        import folder_paths
        return Path(folder_paths.get_folder_paths(FOLDERS[self.method])[0]) / f"{self.name}.safetensors"

    @property
    def run(self) -> Path:
        """The folder of the state to go on from, of prepared data and of previews."""
        import folder_paths
        return Path(folder_paths.get_output_directory()) / "pixart-train" / f"{self.name} ({self.method})"


@dataclass(frozen=True)
class Pictures:
    """What to learn from: IMAGEs (B, H, W, 3) with a caption a line, or a folder, raw or prepared."""

    images: Tensor | None
    captions: str
    folder: str

    def __post_init__(self) -> None:
        if (self.images is None) == (not self.folder.strip()):
            raise ValueError("connect images, or name a folder of pictures: one of the two")
        if self.folder and not Path(self.folder).expanduser().is_dir():
            raise FileNotFoundError(f"there is no folder {self.folder}")

    def lines(self) -> list[str]:
        """A caption for each of the images."""
        found = [line.strip() for line in self.captions.splitlines() if line.strip()]
        if len(found) == 1:
            return found * len(self.images)
        if len(found) != len(self.images):
            raise ValueError(f"{len(found)} captions for {len(self.images)} images; write one line an image, or one "
                             "line for all")
        return found


@dataclass(frozen=True)
class Trained:
    """file: the weights. sheet: the last preview (H, W, 3) in 0..1, and its file; None where none was asked for."""

    file: Path
    sheet: Tensor | None
    picture: Path | None


def train_on(model: Any, wish: Wish, pictures: Pictures, clip: Any, vae: Any) -> Trained:
    """Train, or go on with the training of this name. Raises the host's own exception when it is interrupted.

    ImportError, ValueError, FileNotFoundError, FileExistsError, OSError for what is wrong, before any work.
    """
    check_packages(wish.method)
    if not is_ours(model):
        raise ValueError("training needs the MODEL of Load PixArt; this one comes from another loader")
    if wish.file.exists() and not (wish.run / STATE).exists():
        raise FileExistsError(f"{wish.file} exists and no training of that name is at hand; choose another name")
    devices = [model.load_device] if model.load_device.type == "cuda" else []
    with (torch.inference_mode(False), torch.enable_grad(), stoppable(), memory_handed_back(),
          torch.random.fork_rng(devices)):
        return _train(model, wish, pictures, clip, vae)


def _train(model: Any, wish: Wish, pictures: Pictures, clip: Any, vae: Any) -> Trained:
    config = model.model.model_config.pixart
    side = nearest_class(config.resolution, config.resolution) if wish.resolution == "auto" else int(wish.resolution)
    device, loop = model.load_device, settings_of(wish, config, model.load_device)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(loop.precision, torch.float32)
    base = bare_transformer(model, torch.float32 if device.type == "cpu" else dtype, side)
    folder = data_folder(model, wish, pictures, clip, vae, config, side)
    data = PreparedFolder(folder, need_hints=wish.method == "controlnet")
    check_fit(config, data)
    job = job_of(base, wish, data)
    preview = preview_of(wish, job, data, clip, vae, model)
    make_room(device)
    Path(wish.file).parent.mkdir(parents=True, exist_ok=True)
    watch = [HostWatch(job, wish, loop.save_every), *([preview] if preview else [])]
    average = train(job.model, job.objective, data, loop, wish.run, watch=watch,
                    settings={**job.facts, "method": wish.method, "data": folder.name}, cpu=device.type == "cpu")
    job.save(average)
    return Trained(wish.file, *last_sheet(wish.run / "previews")) if preview else Trained(wish.file, None, None)


def check_packages(method: str) -> None:
    missing = [name for name in NEEDED[method] if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"training needs {' and '.join(missing)}, which ComfyUI does not bring along. Install with:\n"
                          f'    "{sys.executable}" -m pip install {" ".join(missing)}')


def settings_of(wish: Wish, config: PixArtConfig, device: torch.device) -> LoopConfig:
    """Half precision wherever that is the faster one; weights in training stay float32."""
    from comfy import model_management
    if device.type == "cpu":
        precision = "bf16" if faster_dtype(config.hidden) == torch.bfloat16 else "no"
    elif device.type == "cuda":
        precision = "bf16" if model_management.should_use_bf16(device) else "fp16"
    else:
        precision = "no"
    return LoopConfig(steps=wish.steps, batch=wish.batch, learning_rate=wish.learning_rate, warmup=WARMUP,
                      ema=0.99 if wish.method == "controlnet" else 0.0, precision=precision, seed=wish.start_seed,
                      save_every=max(25, wish.steps // 10), log_every=max(1, min(50, wish.steps // 10)),
                      recompute=wish.save_memory)


def job_of(base: nn.Module, wish: Wish, data: PreparedFolder) -> Job:
    """Network, objective and how the result is written, as the command line has them."""
    output = OutputSettings(wish.run, wish.file)
    if wish.method == "controlnet":
        return controlled(base, ControlMethod(blocks=min(wish.blocks, base.config.depth - 1)), data, output,
                          wish.start_seed)
    method = LoraMethod(rank=wish.rank) if wish.method == "lora" else LcmLoraMethod(rank=wish.rank,
                                                                                   guidance=wish.guidance)
    return adapted(base, method, data, output, wish.start_seed)


# -- data --------------------------------------------------------------------------------------------------------------

def data_folder(model: Any, wish: Wish, pictures: Pictures, clip: Any, vae: Any, config: PixArtConfig,
                side: int) -> Path:
    """A prepared folder: the one that was named, or one that is made here of pictures and captions."""
    named = Path(pictures.folder).expanduser() if pictures.folder else None
    if named is not None and shard_paths(named):
        return named
    if clip is None or vae is None:
        raise ValueError("to learn from pictures and captions, connect clip and vae; only a folder made by `python -m "
                         "pixart prepare` needs neither")
    source, mark = (named, short_digest(str(named.resolve()))) if named else written(pictures, wish.run)
    edges = wish.edges if wish.method == "controlnet" else "none"
    out = wish.run / f"data-{mark}-{side}-{edges}"
    hed = hed_path(HED_FILE) if edges == "hed" else None
    job = Preparation((source,), out, family_of(config), side, edges=edges, hed=hed,
                      device=str(model.load_device))
    report = prepare(job, Stages(), networks_of(clip, vae, model))
    for one in report.skipped:
        logger.warning("%s is left out: %s", one.key, one.reason)
    return out


def family_of(config: PixArtConfig) -> Family:
    """How pictures and captions are treated for such a model."""
    kind = "mini" if config.resolution == 128 else "alpha" if config.latent_space == "sd" else "sigma"
    return replace(FAMILIES[kind], latent_space=config.latent_space, tokens=config.caption_tokens,
                   clean=config.cleans_captions)


def written(pictures: Pictures, run: Path) -> tuple[Path, str]:
    """The images as files with captions beside them, in a folder named after what is in it; and that name's mark."""
    from PIL import Image
    arrays = [(image[..., :3].clamp(0, 1) * 255).round().byte().cpu().numpy() for image in pictures.images]
    captions = pictures.lines()
    mark = short_digest(*(text.encode() + array.tobytes() for array, text in zip(arrays, captions)))
    folder = run / f"pictures-{mark}"
    folder.mkdir(parents=True, exist_ok=True)
    for number, (array, text) in enumerate(zip(arrays, captions)):
        Image.fromarray(array).save(folder / f"{number:04d}.png")
        (folder / f"{number:04d}.txt").write_text(text, encoding="utf-8")
    return folder, mark


def short_digest(*parts: bytes | str) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part)
    return found.hexdigest()[:10]


# -- what the user sees ------------------------------------------------------------------------------------------------

class Stages:
    """Progress of preparing on the node."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        stop_if_asked()
        if total:
            bar(total).update_absolute(done, total)


class HostWatch:
    """Progress of the training on the node; keeps the weights on disk, and ends it when the user does."""

    def __init__(self, job: Job, wish: Wish, save_every: int) -> None:
        self.job, self.wish, self.save_every, self.bar = job, wish, save_every, bar(wish.steps)

    def __call__(self, record: Record, average: nn.Module) -> None:
        from comfy import model_management
        asked = model_management.processing_interrupted()
        if asked or record.step % self.save_every == 0:
            self.job.save(average)
        self.bar.update_absolute(record.step, record.steps)
        if asked:
            logger.info("%s: stopped at step %d; %s holds what was learned so far, and the same node goes on from "
                        "there", self.wish.name, record.step, self.wish.file)
            raise KeyboardInterrupt


def preview_of(wish: Wish, job: Job, data: PreparedFolder, clip: Any, vae: Any, model: Any) -> "Preview | None":
    """Draws the prompt now and then, onto the node and into a file; None where there is no prompt."""
    if not wish.preview_prompt.strip() or wish.preview_every < 1:
        return None
    if clip is None or vae is None:
        raise ValueError("a preview needs clip and vae; connect both, or leave preview_prompt empty")
    from ...pixart.train.preview import Preview
    sheets = bar(wish.steps)

    def show(record: Record, sheet: "Image") -> None:
        sheets.update_absolute(record.step, record.steps, ("JPEG", sheet, max(sheet.size)))
    return Preview(subject_of(wish, job, data, clip, vae, model), wish.preview_every, job.parts, wish.run / "previews",
                   show)


def subject_of(wish: Wish, job: Job, data: PreparedFolder, clip: Any, vae: Any, model: Any) -> "Subject":
    """What the preview draws; a ControlNet follows the first edge map of the data, at that picture's size."""
    from ...pixart.pipeline import Request
    from ...pixart.train.preview import Subject
    config, decode, hints, edges = job.config, vae_decoder(vae, model), None, None
    height = width = config.resolution if wish.resolution == "auto" else int(wish.resolution)
    if wish.method == "controlnet":
        shard = next(iter(data.buckets.values()))[0]
        hints = shard.rows("hints", torch.tensor([0])).float()
        edges = decode(hints)
        height, width = edges.shape[-2:]
    prompt = " ".join(wish.preview_prompt.split())
    few = {"sampler": "lcm", "steps": 4} if wish.method == "lcm-lora" else {"sampler": "dpm", "steps": 14}
    request = Request((prompt,), height=height, width=width, seed=wish.start_seed,
                      guidance=4.5 if config.resolution > 128 else 2.5, **few)
    encoder = ClipEncoder(clip)
    caption, null = (encoder.encode([text], config.caption_tokens, config.cleans_captions) for text in (prompt, ""))
    return Subject(request, caption, null, decode, edges, hints)


def last_sheet(folder: Path) -> tuple[Tensor | None, Path | None]:
    """The newest preview, (H, W, 3) in 0..1, and its file."""
    from ...pixart.train.preview import read_picture
    drawn = sorted(folder.glob("step-*.png"))
    return (read_picture(drawn[-1])[0].permute(1, 2, 0), drawn[-1]) if drawn else (None, None)


def bar(total: int) -> Any:
    from comfy.utils import ProgressBar
    return ProgressBar(total)


# -- stopping, and memory ----------------------------------------------------------------------------------------------

def stop_if_asked() -> None:
    """KeyboardInterrupt, on which `pixart` keeps what is done, when the user stopped the host."""
    from comfy import model_management
    if model_management.processing_interrupted():
        raise KeyboardInterrupt


@contextmanager
def stoppable() -> Iterator[None]:
    """KeyboardInterrupt becomes the host's own exception, and its mark is taken back."""
    from comfy import model_management
    try:
        yield
    except KeyboardInterrupt:
        model_management.throw_exception_if_processing_interrupted()
        raise model_management.InterruptProcessingException from None


def make_room(device: torch.device) -> None:
    """Ask the host to take its models off the GPU; it brings them back when they are needed."""
    from comfy import model_management
    if device.type != "cpu":
        model_management.free_memory(model_management.get_total_memory(device), device)


@contextmanager
def memory_handed_back() -> Iterator[None]:
    """At the end nothing of the training stays in memory, however it ended."""
    from comfy import model_management
    try:
        yield
    finally:
        forget_devices()
        gc.collect()
        model_management.soft_empty_cache()


def forget_devices() -> None:
    """accelerate remembers device and precision for the whole process, which is the host's, not ours."""
    from accelerate.state import AcceleratorState
    AcceleratorState._reset_state(reset_partial_state=True)


# -- for the graph -----------------------------------------------------------------------------------------------------

def result_of(model: Any, wish: Wish, trained: Trained) -> dict:
    """What the node returns: outputs that this method does not have are blocked, with the reason where that helps."""
    import folder_paths
    from comfy_execution.graph_utils import ExecutionBlocker

    from .control import load_control_net
    from .lora import apply_lora
    control: Any = ExecutionBlocker(f"PixArt Train made a LoRA ({wish.method}), no ControlNet; connect its MODEL")
    if wish.method == "controlnet":
        control = load_control_net(trained.file, "auto")
    else:
        model, _ = apply_lora(model, trained.file, 1.0)
    sheet = ExecutionBlocker(None) if trained.sheet is None else trained.sheet[None]
    shown = {}
    if trained.picture is not None:
        place = trained.picture.parent.relative_to(folder_paths.get_output_directory()).as_posix()
        shown = {"images": [{"filename": trained.picture.name, "subfolder": place, "type": "output"}]}
    return {"ui": shown, "result": (model, control, sheet, str(trained.file))}
