"""From settings to what is trained: network, objective and how the result is written, one function a method."""
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import save_checkpoint
from ..checkpoint.control import save_control
from ..checkpoint.merged import owned
from ..checkpoint.save_diffusers import refuse_for_diffusers, save_diffusers
from ..config import PixArtConfig
from ..dtypes import dtype_named
from ..model.controlnet import Controlled, PixArtControlNet
from ..model.flexdit import FlexDiT
from ..model.transformer import PixArtTransformer
from ..prepare.state import weights_fingerprint
from ..sampling.dmd import TIMESTEP
from ..sampling.preset import Preset, preset
from ..sampling.tdm import TOTALS
from .alignment import Aligned
from .base_shapes import write_base_shapes
from .data import PreparedFolder
from .initialize import initialize_block
from .loop import Training
from .method_settings import (
    ControlMethod,
    DmdMethod,
    FlexDiTMethod,
    IlfMethod,
    LcmLoraMethod,
    LcmMethod,
    LoraMethod,
    NoisePrediction,
    PTDiTMethod,
    RewardLoraMethod,
    TdmMethod,
)
from .objectives import Consistency, ControlDiffusion, Diffusion, Objective
from .one_step import OneStep
from .picture_distance import picture_distance
from .rivals import Rival, TwoPlayers
from .settings import OutputSettings, Settings
from .starting import attend_of, check_fit, load_base, new_model
from .thinned import one_density
from .trajectory import Trajectory


@dataclass(frozen=True)
class TrainingJob:
    """Everything `train` needs, and what to do with the averaged network it returns."""

    model: nn.Module
    objective: Objective
    data: PreparedFolder
    file: Path                       # for the result
    write: Callable[[nn.Module, Path], Path]         # an averaged network, to a file
    config: PixArtConfig
    facts: Mapping[str, object]      # settings of the method that must not change when a training goes on
    rival: Rival | None = None       # the second player, where there is one

    @property
    def kind(self) -> Callable[..., Training]:
        """The class of its training."""
        return Training if self.rival is None else partial(TwoPlayers, rival=self.rival)

    def save(self, average: nn.Module, decay: float | None = None) -> Path:
        """Write an averaged network to its place; with `decay`, a further average beside the result."""
        if decay is None:
            return self.write(average, self.file)
        stem = self.file.stem if self.file.suffix == ".safetensors" else self.file.name
        suffix = self.file.suffix if self.file.suffix == ".safetensors" else ""
        return self.write(average, self.file.with_name(f"{stem}-ema-{decay:g}{suffix}"))

    def parts(self, average: Any) -> tuple[PixArtTransformer, PixArtControlNet | None]:
        """What draws pictures: a transformer, and the ControlNet beside it if that is what is trained."""
        if isinstance(average, Controlled):
            return average.base, average.control
        return (average.network if isinstance(average, Aligned) else average), None


def assemble(settings: Settings) -> TrainingJob:
    """Load what the settings name. Raises ValueError where data and model do not belong together."""
    job = assembled(settings)
    base = weights_fingerprint(settings.model.base)     # another one would be trained on, or not at all, unsaid
    return job if base is None else replace(job, facts={**job.facts, "base": base})


def assembled(settings: Settings) -> TrainingJob:
    """The same, without what tells its base from others."""
    if isinstance(settings.method, RewardLoraMethod):
        return rewarded(settings)
    data = PreparedFolder(settings.data.folder, need_hints=isinstance(settings.method, ControlMethod))
    method, output, seed = settings.method, settings.output, settings.train.seed
    if isinstance(method, LoraMethod | LcmLoraMethod):
        job = adapted(load_base(settings.model, settings.model.dtype), method, data, output, seed)
    elif isinstance(method, ControlMethod):
        job = controlled(load_base(settings.model, settings.model.dtype), method, data, output, seed)
    elif isinstance(method, IlfMethod):
        job = looped(load_base(settings.model, settings.model.dtype), method, data, output, seed)
    elif isinstance(method, TdmMethod | DmdMethod):
        job = matched(settings, data)
    elif isinstance(method, FlexDiTMethod):
        job = flexdit_job(settings, data)
    elif isinstance(method, PTDiTMethod):
        from .rectified_flow import flow_job
        job = flow_job(settings, data)
    else:
        job = lcm_job(settings, data) if isinstance(method, LcmMethod) else diffusion(settings, data)
    check_fit(job.config, data, pictures=needs_pictures(method))
    return job


def needs_pictures(method: object) -> bool:
    """Whether captions alone will not do."""
    return not (isinstance(method, TdmMethod) or (isinstance(method, DmdMethod) and not method.regression))


# -- all weights -------------------------------------------------------------------------------------------------------

def diffusion(settings: Settings, data: PreparedFolder) -> TrainingJob:
    """All weights, from a checkpoint or from nothing."""
    if settings.model.new:
        model = new_model(settings.model, data, settings.train.mup_base_width)
    else:
        model = owned(load_base(settings.model, "fp32"))
    if settings.method.align.network != "none":
        return aligned(model, settings, data)
    return full(model, of_method(Diffusion, settings.method, data), data, settings, preset("teacher"))


def aligned(model: PixArtTransformer, settings: Settings, data: PreparedFolder) -> TrainingJob:
    """The same with a block that learns what a frozen network sees of the pictures."""
    from .frozen_features import with_alignment
    if settings.train.mup_base_width:
        raise ValueError("muP has no rule for the head of an alignment; leave train.mup_base_width or method.align out")
    dtype = torch.bfloat16 if settings.train.precision == "bf16" else torch.float32
    network, kind = with_alignment(model, settings.method.align, dtype, settings.train.seed)
    job = full(model, of_method(kind, settings.method, data), data, settings, preset("teacher"))
    return replace(job, model=network, write=lambda average, file: job.write(average.get_submodule("network"), file))


def of_method(kind: Callable[..., Diffusion], method: NoisePrediction, data: PreparedFolder) -> Diffusion:
    """`Diffusion` or one of its kinds as the settings of a method have it."""
    return kind(data, method.caption_dropout, method.timesteps, method.weighting, method.weighting_cap)


def lcm_job(settings: Settings, data: PreparedFolder) -> TrainingJob:
    """A student that starts as its frozen teacher."""
    teacher = load_base(settings.model, settings.model.dtype, flexdit=True).requires_grad_(False)
    student = owned(load_base(settings.model, "fp32", flexdit=True)).requires_grad_(True)
    method: LcmMethod = settings.method
    return full(student, Consistency(data, teacher, method.guidance, method.huber_c, method.guidance_max), data,
                settings, preset("lcm"))


def flexdit_job(settings: Settings, data: PreparedFolder) -> TrainingJob:
    """A FlexDiT, or a PixArt model that becomes one, with the usual loss."""
    from ..checkpoint.to_flexdit import to_flexdit
    method: FlexDiTMethod = settings.method
    base = load_base(settings.model, "fp32", flexdit=True)
    config = method.config(base.config)
    if isinstance(base, FlexDiT):
        base.config = config                # of another density, perhaps: the weights are the same
        model: PixArtTransformer = base
    else:
        model = to_flexdit(base, config.segments, config.density)
    objective = of_method(Diffusion, method, data)
    if method.one_density:
        objective = replace(objective, timesteps=one_density(method.timesteps, config.density))
    job = full(owned(model).requires_grad_(True), objective, data, settings, preset("teacher"))
    return replace(job, facts={**asdict(config.segments), **asdict(config.density)})


def full(model: PixArtTransformer, objective: Any, data: PreparedFolder, settings: Settings,
         sampling: Preset) -> TrainingJob:
    """All weights of one network. sampling: how the result wants to be sampled, which its file will say."""
    base_width, flexdit = settings.train.mup_base_width, isinstance(model, FlexDiT)
    if flexdit and settings.output.file.suffix != ".safetensors":
        raise ValueError(f"output.file is {settings.output.file}; the name of a FlexDiT must end in .safetensors")
    if settings.output.file.suffix != ".safetensors":
        refuse_for_diffusers(model.config, settings.output.file)        # now, not when the training is over
    if flexdit and base_width:
        raise ValueError("train.mup_base_width has no effect with a FlexDiT, which starts from trained weights")

    def write(average: nn.Module, file: Path) -> Path:
        if base_width:
            write_base_shapes(file.with_suffix(".bsh"), model.config, base_width)
        save_as = save_checkpoint if file.suffix == ".safetensors" else save_diffusers
        return save_as(file, average, model.config, dtype_named(settings.output.dtype), sampling.to_header())
    return TrainingJob(model, objective, data, settings.output.file, write, model.config, {})


# -- what is trained beside a frozen base ------------------------------------------------------------------------------

def adapted(base: PixArtTransformer, method: LoraMethod | LcmLoraMethod, data: PreparedFolder, output: OutputSettings,
            seed: int) -> TrainingJob:
    """Adapters in the base, which learn the pictures, or (LCM-LoRA) to be their own base's few-step student."""
    from .lcm_lora import ConsistencyLora
    from .lora import add_lora, save_lora
    objective: Objective
    if isinstance(method, LcmLoraMethod):
        objective = ConsistencyLora(data, method.guidance, method.huber_c, method.guidance_max)
    else:
        objective = of_method(Diffusion, method, data)
    model = add_lora(base, method.rank, method.alpha, method.targets, method.dora, seed)

    sampling = preset("lcm-lora").to_header() if isinstance(method, LcmLoraMethod) else {}

    def write(average: nn.Module, file: Path) -> Path:
        return save_lora(file, average, dtype_named(output.dtype), sampling)
    facts = {"rank": method.rank, "alpha": method.alpha or float(method.rank), "targets": method.targets,
             "dora": method.dora}
    return TrainingJob(model, objective, data, output.file, write, base.config, facts)


def rewarded(settings: Settings) -> TrainingJob:
    """Adapters in a few-step model, which learn to draw what rewards score high."""
    from ..drawing import Request
    from ..reward.generator import check_differentiable
    from .lora import add_lora, save_lora
    from .rewarded import ascent_of
    method, output = settings.method, settings.output
    check_differentiable(Request(("x",), sampler=method.sampler, steps=method.steps, rule=method.rule))
    base = load_base(settings.model, settings.model.dtype)
    objective: Any = ascent_of(method, settings.data.folder, base.config)
    model = add_lora(base, method.rank, method.alpha, method.targets, method.dora, settings.train.seed)
    check_fit(base.config, objective.data, pictures=False)
    sampling = replace(preset(method.sampler), steps=method.steps, rule=method.rule).to_header()

    def write(average: nn.Module, file: Path) -> Path:
        return save_lora(file, average, dtype_named(output.dtype), sampling)
    facts = {"rank": method.rank, "alpha": method.alpha or float(method.rank), "targets": method.targets,
             "dora": method.dora, "rewards": method.rewards}
    return TrainingJob(model, objective, objective.data, output.file, write, base.config, facts)


def controlled(base: PixArtTransformer, method: ControlMethod, data: PreparedFolder, output: OutputSettings,
               seed: int) -> TrainingJob:
    """Trainable copies of the first blocks beside the base, and like them at the start: nothing is drawn by `seed`."""
    base.requires_grad_(False)
    control = PixArtControlNet.copy_of(base, method.blocks, attend_of(base)).float()

    def write(average: Any, file: Path) -> Path:
        return save_control(file, average.control, dtype_named(output.dtype))
    return TrainingJob(Controlled(base, control.requires_grad_(True)), of_method(ControlDiffusion, method, data), data,
                       output.file, write, base.config, {"blocks": method.blocks})


def looped(base: PixArtTransformer, method: IlfMethod, data: PreparedFolder, output: OutputSettings,
           seed: int) -> TrainingJob:
    """A feedback block and scales beside the base; the block starts from nothing, the scales at zero."""
    from ..checkpoint.feedback import save_feedback
    from ..model.feedback import Feedback, WithFeedback
    from .inner_loop import InnerLoopDistillation
    first, last = method.blocks(base.config.depth)
    feedback = Feedback(base.config, first, last, method.steps, attend=attend_of(base))
    initialize_block(feedback.block, seed)

    def write(average: Any, file: Path) -> Path:
        return save_feedback(file, average.feedback, dtype_named(output.dtype))
    model = WithFeedback(base.requires_grad_(False), feedback.requires_grad_(True))
    return TrainingJob(model, InnerLoopDistillation(data, method.steps, method.substeps, method.guidance), data,
                       output.file, write, base.config, {"first": first, "last": last})


# -- two players -------------------------------------------------------------------------------------------------------

def matched(settings: Settings, data: PreparedFolder) -> TrainingJob:
    """A student of distribution matching and the fake score beside it; both start as their frozen teacher."""
    method = settings.method
    if method.rank:
        return matched_lora(load_base(settings.model, settings.model.dtype), method, data, settings.output,
                            settings.train.seed)
    teacher = load_base(settings.model, settings.model.dtype).requires_grad_(False)
    student, fake = (owned(load_base(settings.model, "fp32")).requires_grad_(True) for _ in range(2))
    job = full(student, game_of(method, data, teacher, student.config), data, settings, few_step_preset(method))
    return replace(job, rival=Rival(fake, method.fake_learning_rate, method.fake_clip))


def matched_lora(base: PixArtTransformer, method: Any, data: Any, output: OutputSettings, seed: int) -> TrainingJob:
    """Student and fake score as LoRAs on one base, which without them is the teacher."""
    from .average import copy_sharing_frozen
    from .lora import add_lora, save_lora, without_adapters
    student = add_lora(base, method.rank, method.alpha, method.targets, seed=seed)
    fake = copy_sharing_frozen(student)

    def teacher(*given: Tensor, **conditions: Tensor) -> Tensor:
        with without_adapters(fake):
            return fake(*given, **conditions)

    def write(average: nn.Module, file: Path) -> Path:
        return save_lora(file, average, dtype_named(output.dtype), few_step_preset(method).to_header())
    facts = {"rank": method.rank, "alpha": method.alpha or float(method.rank), "targets": method.targets}
    return TrainingJob(student, game_of(method, data, teacher, base.config), data, output.file, write, base.config,
                       facts, Rival(fake, method.fake_learning_rate, method.fake_clip))


def few_step_preset(method: TdmMethod | DmdMethod) -> Preset:
    """How such a student wants to be sampled."""
    if isinstance(method, DmdMethod):
        return preset("dmd")
    return replace(preset("tdm"), steps=method.steps, rule=method.rule)


def game_of(method: TdmMethod | DmdMethod, data: Any, teacher: Callable[..., Tensor], config: PixArtConfig) -> Any:
    """What the two minimise, as the settings have it."""
    if isinstance(method, DmdMethod):
        distance = picture_distance(method.regression_on, method.lpips, method.vae, config)
        return OneStep(data, teacher, config.channels, method.guidance, TIMESTEP, method.regression, method.share,
                       method.regression_on, distance)
    return Trajectory(data, teacher, config.channels, method.guidance, method.steps, TOTALS[method.rule],
                      method.separate, method.importance, method.huber)
