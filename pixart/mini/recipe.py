"""The recipe of PixArt-mini: one command that rebuilds every weight from nothing, stage by stage, resumable.

The transformer stages use the trainers of `pixart.train` as any user would; only pictures, judge, autoencoder and
text encoder are particular to this small world.
"""
import copy
import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..checkpoint import load, save_checkpoint, save_control
from ..config import PixArtConfig
from ..model.attention import matmul_attention
from ..model.controlnet import Controlled, PixArtControlNet
from ..model.transformer import PixArtTransformer
from ..train.data import PreparedFolder
from ..train.initialize import initialize
from ..train.jobs import with_null_caption
from ..train.loop import train
from ..train.loop_config import LoopConfig
from ..train.objectives import Consistency, Control, Diffusion
from ..train.precision import fitting_precision
from . import Files
from .autoencoder import train_autoencoder
from .judge import train_judge
from .pictures import BUCKETS
from .prepare import prepare
from .text_encoder import TOKENS, WIDTH, train_text_encoder

logger = logging.getLogger(__name__)

MINI = PixArtConfig(depth=8, hidden=192, heads=4, caption_width=WIDTH, caption_tokens=TOKENS, base_size=8,
                    position_scale=1.0, micro_conditioning=True)
PROBED = 256         # width of the matrices that decide whether small convolutions gain by 16 bits


@dataclass(frozen=True)
class Recipe:
    """Sizes of all stages; the defaults made the weights in the repository."""

    seed: int = 0
    pictures: int = 30_000
    judge_steps: int = 1200
    autoencoder_steps: int = 3000
    text_steps: int = 1200
    teacher: LoopConfig = field(default_factory=lambda: LoopConfig(
        steps=3600, batch=64, learning_rate=1e-3, warmup=200, cooldown=900, optimizer="muon", ema=0.998,
        betas=(0.9, 0.98), precision="auto"))
    # What the student knows at t = 0 must travel up 50 grid points, one moving average at a time: a short memory.
    student: LoopConfig = field(default_factory=lambda: LoopConfig(
        steps=1000, batch=32, learning_rate=3e-4, warmup=100, cooldown=300, ema=0.85, precision="auto"))
    control: LoopConfig = field(default_factory=lambda: LoopConfig(
        steps=3000, batch=32, learning_rate=8e-4, warmup=100, cooldown=1000, ema=0.995, precision="auto"))
    control_blocks: int = 4
    guidance: float = 1.5        # w of the distillation; 1.5 is a scale of 2.5, with which the teacher is measured


def train_teacher(recipe: Recipe, data: PreparedFolder, work: Path, files: Files) -> None:
    """Diffusion training from nothing."""
    model = with_null_caption(initialize(PixArtTransformer(MINI, attend=matmul_attention), recipe.seed), data)
    average = train(model, Diffusion(data), data, recipe.teacher, work / "teacher")
    files.teacher.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(files.teacher, average, MINI, torch.float16)


def train_student(recipe: Recipe, data: PreparedFolder, work: Path, files: Files) -> None:
    """Latent consistency distillation of the teacher."""
    teacher = load(files.teacher, dtype=torch.float32, attend=matmul_attention).requires_grad_(False)
    objective = Consistency(data, teacher, recipe.guidance)
    average = train(copy.deepcopy(teacher).requires_grad_(True), objective, data, recipe.student, work / "student")
    save_checkpoint(files.student, average, MINI, torch.float16)


def train_control(recipe: Recipe, data: PreparedFolder, work: Path, files: Files) -> None:
    """A ControlNet of the first half of the teacher's blocks, on the edge maps of the training pictures."""
    base = load(files.teacher, dtype=torch.float32, attend=matmul_attention).requires_grad_(False)
    network = PixArtControlNet.copy_of(base, recipe.control_blocks, attend=matmul_attention)
    average = train(Controlled(base, network), Control(data), data, recipe.control, work / "control")
    save_control(files.control, average.control, torch.float16)


def prepare_data(work: Path, files: Files, recipe: Recipe = Recipe(), device: str = "cpu") -> PreparedFolder:
    """Train autoencoder, text encoder and judge where they are missing, and prepare work/data with them."""
    state, seed, autocast = work / "state", recipe.seed, fitting_precision(torch.device(device), PROBED) == "bf16"
    unfinished = (state / "vae.pt").exists() and not (state / "vae.done").exists()     # the file is written on the way
    if unfinished or not files.vae.exists():
        train_autoencoder(files.vae, recipe.autoencoder_steps, batch=16, seed=seed, state=state / "vae.pt",
                          device=device, autocast=autocast)
        (state / "vae.done").touch()
    if not files.t5.exists():
        train_text_encoder(files.t5, recipe.text_steps, batch=64, seed=seed, state=state / "t5.pt", device=device)
    if not files.judge.exists():
        train_judge(files.judge, recipe.judge_steps, seed=seed, state=state / "judge.pt", device=device,
                    autocast=autocast)
    if len(list((work / "data").glob("*.safetensors"))) <= len(BUCKETS):
        prepare(work / "data", recipe.pictures, seed, files=files, device=device, autocast=autocast)
    return PreparedFolder(work / "data")


def build(work: Path, files: Files, recipe: Recipe = Recipe(), device: str = "cpu") -> None:
    """Run every stage whose result is missing. `work` keeps states and data, `files` says where weights go."""
    data = prepare_data(work, files, recipe, device)
    if not files.teacher.exists():
        train_teacher(recipe, data, work, files)
    if not files.student.exists():
        train_student(recipe, data, work, files)
    if not files.control.exists():
        train_control(recipe, data, work, files)
