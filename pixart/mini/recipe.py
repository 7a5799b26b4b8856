"""The recipe of PixArt-mini: one command that rebuilds every weight from scratch, stage by stage, resumable.

The transformer stages use the trainers of `pixart.train` as any user would; only images, judges, autoencoder and
text encoder are particular to this small world. Images are rendered afresh while a training runs.
"""
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint import load, save_checkpoint, save_control
from ..config import PixArtConfig
from ..files.atomic import replacing
from ..model.attention import Attend, matmul_attention, sdpa
from ..model.controlnet import Controlled, PixArtControlNet
from ..model.transformer import PixArtTransformer
from ..sampling.preset import preset
from ..train.data import PreparedFolder
from ..train.initialize import initialize
from ..train.loop import Training, train_averages
from ..train.loop_config import LoopConfig
from ..train.method_settings import DmdMethod, LcmLoraMethod, TdmMethod
from ..train.objectives import ControlDiffusion, Diffusion
from ..train.precision import fitting_precision
from ..train.report import Record
from ..train.timesteps import Timesteps
from . import Files
from .autoencoder import AutoencoderConfig, load_autoencoder, train_autoencoder
from .catalogue import SceneWish, build_catalogue
from .clock import Clock, planned
from .images import BUCKETS
from .judge import DESIGNS, train_judge
from .prepare import prepare_scenes
from .scenery import Scenery
from .stream import EndlessData
from .students import train_lcm, train_matched
from .text_encoder import MINI_TOKENS, WIDTH, build_tokenizer, load_text_encoder, train_text_encoder

logger = logging.getLogger(__name__)

MINI_CONFIG = PixArtConfig(depth=8, hidden=192, heads=4, caption_width=WIDTH, caption_tokens=MINI_TOKENS, base_size=8,
                           position_scale=1.0, micro_conditioning=True)
STAGES = ("autoencoder", "text", "judge", "judge_a", "teacher", "student", "control", "tdm", "dmd")
PROBED = 256         # width of the matrices that decide whether small convolutions gain by 16 bits
SNAPSHOT = 60.0      # seconds between two files of the weights so far
TEACHER_HEADER = preset("teacher", 2.5).to_header()         # how it is to be sampled


MATCHED = LoopConfig(steps=1000, batch=16, learning_rate=2e-4, warmup=20, betas=(0.0, 0.95), weight_decay=0.01,
                     ema=0.98, precision="auto", threads=1)         # of the students by distribution matching


@dataclass(frozen=True)
class Small:
    """Length of the training of one of the small networks."""

    steps: int
    batch: int
    learning_rate: float = 2e-3


@dataclass(frozen=True)
class MiniRecipe:
    """Sizes of all stages. The defaults suit two CPU cores and some hours, `for_gpu` some minutes of a large GPU."""

    seed: int = 0
    scenes: int = 100_000        # ordinary scenes, with a caption each
    crowds: int = 25_000         # scenes of three to five things, with a long caption each
    crowded: float = 0.2         # share of the batches that are drawn from these
    two: float = 0.35            # share of two things among the ordinary scenes
    reuse: int = 4               # steps in a row that see the same images, each with other noise
    images: int = 30_000       # prepared by `mini data` for trainings from a folder
    autoencoder: Small = Small(3000, 64)
    text: Small = Small(2000, 64)
    judge: Small = Small(1500, 64)
    plan: AutoencoderConfig = AutoencoderConfig((32, 48, 64, 64), (0, 1, 2, 3), (1, 3, 3, 3))
    teacher: LoopConfig = field(default_factory=lambda: LoopConfig(
        steps=9000, batch=64, learning_rate=1e-3, warmup=200, cooldown=3000, optimizer="muon", ema=0.998,
        betas=(0.9, 0.98), precision="auto", threads=1))
    timesteps: Timesteps = Timesteps("range", low=250, high=800, share=0.5, stratified=True)
    weighting: str = "v"
    weighting_cap: float = 100.0
    student: LoopConfig = field(default_factory=lambda: LoopConfig(
        steps=500, batch=16, learning_rate=1e-3, warmup=50, cooldown=170, ema=0.0, precision="auto", threads=1))
    student_method: LcmLoraMethod = LcmLoraMethod(guidance=1.5, rank=16)     # a scale of 2.5, as with the teacher
    control: LoopConfig = field(default_factory=lambda: LoopConfig(
        steps=3000, batch=32, learning_rate=8e-4, warmup=100, cooldown=1000, ema=0.995, precision="auto", threads=1))
    control_blocks: int = 4
    tdm: LoopConfig = field(default_factory=lambda: MATCHED)
    tdm_method: TdmMethod = TdmMethod(guidance=2.5, fake_learning_rate=1e-3, rank=16)
    dmd: LoopConfig = field(default_factory=lambda: replace(MATCHED, steps=1500))
    dmd_method: DmdMethod = DmdMethod(guidance=2.5, fake_learning_rate=1e-3, fake_clip=math.inf, rank=16)
    pairs: int = 4000            # of noise and the teacher's image, for dmd


def for_gpu(recipe: MiniRecipe = MiniRecipe()) -> MiniRecipe:
    """Large batches at the rates that suit them; the steps of the last three stages are a first guess."""
    return replace(
        recipe, scenes=400_000, crowds=100_000, reuse=1, autoencoder=Small(3500, 128), text=Small(3000, 256),
        judge=Small(2500, 128),
        teacher=replace(recipe.teacher, steps=6000, batch=512, learning_rate=1.5e-3, warmup=200, cooldown=2400,
                        ema=0.998, random_on_device=True, threads=0),
        student=replace(recipe.student, steps=1000, batch=128, cooldown=340, random_on_device=True, threads=0),
        control=replace(recipe.control, steps=1000, batch=256, learning_rate=1e-3, cooldown=400, random_on_device=True,
                        threads=0),
        tdm=replace(recipe.tdm, batch=128, random_on_device=True, threads=0), pairs=32_000,
        dmd=replace(recipe.dmd, batch=128, random_on_device=True, threads=0))


class Builder:
    """One build: recipe, files and device, and the data that its stages share."""

    def __init__(self, work: Path, files: Files, recipe: MiniRecipe = MiniRecipe(), device: str = "cpu",
                 clock: Clock | None = None) -> None:
        """Raises ValueError when the work folder belongs to another recipe."""
        self.work, self.files, self.recipe = work, files, recipe
        self.device, self.clock = torch.device(device), clock or Clock(None)
        self.autocast = fitting_precision(self.device, PROBED) == "bf16"
        self.attend: Attend = matmul_attention if self.device.type == "cpu" else sdpa
        self.state = work / "state"
        check_recipe(work / "recipe.json", recipe)

    def missing(self) -> tuple[str, ...]:
        """The stages whose result is not there."""
        files = self.files
        results = {"autoencoder": files.vae, "text": files.t5, "judge": files.judge, "judge_a": files.judge_a,
                   "teacher": files.teacher, "student": files.student, "control": files.control,
                   "tdm": files.tdm, "dmd": files.dmd}
        unfinished = self.state.joinpath("autoencoder.pt").exists() and not self.state.joinpath("vae.done").exists()
        return tuple(stage for stage in STAGES if not results[stage].exists()
                     or (stage == "autoencoder" and unfinished))      # the file is written on the way

    def run(self, stages: tuple[str, ...] = STAGES) -> None:
        """Train what is missing of `stages`, in their order."""
        for stage in self.missing():
            if stage in stages:
                logger.info("---- %s", stage)
                getattr(self, f"train_{stage}")()

    # -- small networks ------------------------------------------------------------------------------------------------

    def scenery(self, seed: int, held_out: float = 0.0, crowded: float | None = None, part: int = 1) -> Scenery:
        """Scenes to render, of the training split but for a share that is held out; every `part`-th of the numbers."""
        tokenizer = load_text_encoder(self.files.t5)[0] if self.files.t5.exists() else build_tokenizer()
        words, recipe = tokenizer.get_vocab(), self.recipe
        ordinary, crowds = (build_catalogue(wish, count, words).to(self.device) for wish, count in (
            (SceneWish(seed, two=recipe.two, held_out=held_out), recipe.scenes // part),
            (SceneWish(seed, crowded=True, held_out=held_out), recipe.crowds // part)))
        return Scenery(ordinary, crowds, recipe.crowded if crowded is None else crowded)

    @cached_property
    def training(self) -> Scenery:
        """What autoencoder and transformers see."""
        return self.scenery(self.recipe.seed)

    def train_autoencoder(self) -> None:
        size = self.recipe.autoencoder
        train_autoencoder(self.files.vae, self.training, size.steps, size.batch, self.recipe.seed,
                          self.state / "autoencoder.pt", size.learning_rate, self.recipe.plan, self.autocast)
        (self.state / "vae.done").touch()

    def train_text(self) -> None:
        size = self.recipe.text
        train_text_encoder(self.files.t5, size.steps, size.batch, self.recipe.seed, self.state / "text.pt",
                           size.learning_rate, str(self.device), self.recipe.scenes // 2)

    def train_judge(self) -> None:
        """Judge B, which measures."""
        self._judge(self.files.judge, "b", self.recipe.seed + 11)

    def train_judge_a(self) -> None:
        """Judge A, which may teach: of other scenes, seed and architecture."""
        self._judge(self.files.judge_a, "a", self.recipe.seed + 12)

    def _judge(self, path: Path, name: str, seed: int) -> None:
        size, scenery = self.recipe.judge, self.scenery(seed, held_out=0.25, crowded=0.35, part=4)
        train_judge(path, scenery, size.steps, size.batch, seed, self.state / f"{path.stem}.pt", size.learning_rate,
                    DESIGNS[name], self.autocast)

    # -- transformers --------------------------------------------------------------------------------------------------

    def data(self, hints: bool = False, images: bool = True) -> EndlessData:
        """Images without end, for the trainers; or captions alone."""
        encoder: nn.Module = load_text_encoder(self.files.t5)[1]
        vae = load_autoencoder(self.files.vae).to(self.device,
                                                  memory_format=torch.channels_last)    # type: ignore[call-overload]
        data = EndlessData(self.training, vae, encoder.to(self.device), MINI_TOKENS, hints, self.autocast,
                           self.recipe.reuse, images)
        if self.device.type == "cuda":          # there is room for the features of all captions
            data.remember()
        return data

    def train_teacher(self) -> None:
        """Diffusion training from scratch."""
        recipe, data = self.recipe, self.data()
        model = initialize(PixArtTransformer(MINI_CONFIG, attend=self.attend), recipe.seed)
        model.y_embedder.y_embedding.copy_(data.null_context[:1].expand(MINI_TOKENS, -1))  # type: ignore[operator]
        objective = Diffusion(data, timesteps=recipe.timesteps, weighting=recipe.weighting,
                              weighting_cap=recipe.weighting_cap)
        self.fit("teacher", model, objective, data, recipe.teacher,
                 lambda average, path: save_checkpoint(path, average, MINI_CONFIG, torch.float16, TEACHER_HEADER),
                 self.files.teacher)

    def train_student(self) -> None:
        """Latent consistency distillation: the teacher in 2 to 8 steps, a LoRA that is merged into its file."""
        train_lcm(self)

    def train_control(self) -> None:
        """A ControlNet of the first half of the teacher's blocks, on the edge maps of the training images."""
        recipe, base, data = self.recipe, self.base(), self.data(hints=True)
        network = PixArtControlNet.copy_of(base, recipe.control_blocks, attend=self.attend)
        objective = ControlDiffusion(data, timesteps=recipe.timesteps, weighting=recipe.weighting,
                                     weighting_cap=recipe.weighting_cap)
        self.fit("control", Controlled(base, network), objective, data, recipe.control, save_control_of,
                 self.files.control)

    def train_tdm(self) -> None:
        """Trajectory distribution matching: the teacher in four steps, as a LoRA."""
        train_matched(self, "tdm")

    def train_dmd(self) -> None:
        """Distribution matching distillation: the teacher in one step, as a LoRA."""
        train_matched(self, "dmd")

    def base(self) -> PixArtTransformer:
        """The finished teacher, frozen."""
        return load(self.files.teacher, dtype=torch.float32, attend=self.attend).requires_grad_(False)

    def fit(self, stage: str, model: nn.Module, objective: Any, data: Any, config: LoopConfig,
            save: Callable[[nn.Module, Path], object], result: Path, make: Callable[..., Training] = Training,
            facts: Mapping[str, object] | None = None) -> None:
        """Train one of the transformers for its share of the time, and write it; on the way, once a minute, what it
        has become to `work`. make: the class of the training. facts: what must not change when it goes on."""
        folder = self.work / stage
        folder.mkdir(parents=True, exist_ok=True)
        model.to(self.device)
        to_come = tuple(name for name in self.missing() if name in Clock.SHARES)
        config = planned(folder / "length.json", config, self.clock.seconds(stage, to_come), model, objective, data,
                         make)
        cpu = self.device.type == "cpu"
        snapshot = Snapshot(lambda average: save(average, folder / "so-far.safetensors"))
        average = train_averages(model, objective, data, config, folder, watch=[snapshot], settings=facts, cpu=cpu,
                                 make=make)[config.ema]
        result.parent.mkdir(parents=True, exist_ok=True)
        save(average, result)


def save_control_of(average: nn.Module, path: Path) -> None:
    """Write the ControlNet of a `Controlled` network."""
    control: Any = average.get_submodule("control")
    save_control(path, control, torch.float16)


class Snapshot:
    """Writes the averaged weights of a training about once a minute."""

    def __init__(self, write: Callable[[nn.Module], object]) -> None:
        self.write, self.last = write, time.monotonic()

    def __call__(self, record: Record, average: nn.Module) -> None:
        if time.monotonic() - self.last > SNAPSHOT:
            self.write(average)
            self.last = time.monotonic()


def check_recipe(path: Path, recipe: MiniRecipe) -> None:
    """Keep what a work folder was begun with, and refuse to go on in it with another recipe."""
    now = json.loads(json.dumps(asdict(recipe)))
    if path.exists():
        before = json.loads(path.read_text())
        usual = json.loads(json.dumps(asdict(MiniRecipe())))    # of what a work folder of an older version does not say
        changed = sorted(name for name in now.keys() | before.keys()
                         if now.get(name) != before.get(name, usual.get(name)))
        if changed:
            raise ValueError(f"other recipe in the work folder: {', '.join(changed)} changed. Give --work another "
                             f"folder, or remove this one to start anew: {path.parent}")
        return
    if path.parent.exists() and any(path.parent.iterdir()):
        raise ValueError("the work folder holds files of another or an older build, and no recipe.json. Give --work "
                         f"an empty folder, or one that this version began: {path.parent}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside:
        beside.write_text(json.dumps(now, indent=1))


def prepare_data(work: Path, files: Files, recipe: MiniRecipe = MiniRecipe(), device: str = "cpu") -> PreparedFolder:
    """Train the small networks where they are missing, and prepare work/data with them, for trainings from a folder."""
    builder = Builder(work, files, recipe, device)
    builder.run(STAGES[:4])
    if len(list((work / "data").glob("*.safetensors"))) <= len(BUCKETS):
        prepare_scenes(work / "data", recipe.images, recipe.seed, files=files, device=device,
                       autocast=builder.autocast)
    return PreparedFolder(work / "data")


def build_mini(work: Path, files: Files, recipe: MiniRecipe | None = None, device: str = "cpu",
               minutes: float | None = None, stages: tuple[str, ...] = STAGES) -> None:
    """Run every stage of `stages` whose result is missing. `work` keeps states, `files` says where weights go.

    minutes: how long all of it may take; by default every stage takes its own steps.
    """
    if recipe is None:
        recipe = MiniRecipe() if device == "cpu" else for_gpu()
    Builder(work, files, recipe, device, Clock(minutes)).run(stages)
