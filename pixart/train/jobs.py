"""From settings to jobs: what each method trains, on what, and how its result is written, one function a method."""
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
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
from ..sampling.dmd import TIMESTEP
from ..sampling.preset import Preset, preset
from ..sampling.tdm import TOTALS
from ..weights.fingerprint import weights_fingerprint
from .base_shapes import write_base_shapes
from .data import PreparedFolder
from .image_distance import image_distance
from .initialize import initialize_block
from .job import TrainingJob, Write
from .method_settings import (
    Adapter,
    ControlMethod,
    DiffusionMethod,
    DmdMethod,
    FlexDiTMethod,
    IlfMethod,
    LcmLoraMethod,
    LcmMethod,
    LoraMethod,
    NoisePrediction,
    PTDiTMethod,
    RewardLoraMethod,
    Rivalry,
    TdmMethod,
)
from .objectives import Consistency, ControlDiffusion, Diffusion, Objective
from .one_density import one_density
from .one_step import OneStep
from .rectified_flow import flow_job
from .rivals import Rival
from .settings import OutputSettings, Settings
from .starting import attend_of, check_fit, load_base, new_model
from .trajectory import Trajectory


def assemble(settings: Settings) -> TrainingJob:
    """Load what the settings name. Raises ValueError where data and model do not belong together."""
    job = job_of_method(settings)
    base = weights_fingerprint(settings.model.base)     # else a training would silently go on with another base
    return job if base is None else replace(job, facts={**job.facts, "base": base})


def job_of_method(settings: Settings) -> TrainingJob:
    """The same, without what tells its base from others."""
    method, output, seed = settings.method, settings.output, settings.train.seed
    if isinstance(method, RewardLoraMethod):                # whose data is a text file of captions
        return reward_job(settings)
    data = PreparedFolder(settings.data.folder, need_hints=isinstance(method, ControlMethod))
    if type(method) in ON_FROZEN_BASE:
        base = load_base(settings.model, settings.model.dtype)
        job = ON_FROZEN_BASE[type(method)](base, method, data, output, seed)
    else:
        job = OF_WHOLE_NETWORKS[type(method)](settings, data)
    check_fit(job.config, data, images=needs_images(method))
    return job


def needs_images(method: object) -> bool:
    """Whether captions alone are not enough."""
    return not (isinstance(method, TdmMethod) or (isinstance(method, DmdMethod) and not method.regression))


def diffusion_job(settings: Settings, data: PreparedFolder) -> TrainingJob:
    """All weights, from a checkpoint or from scratch."""
    if settings.model.new:
        model = new_model(settings.model, data, settings.train.mup_base_width)
    else:
        model = owned(load_base(settings.model, "fp32"))
    if settings.method.align.network != "none":
        return aligned_job(model, settings, data)
    return full_job(model, of_method(Diffusion, settings.method, data), data, settings, preset("teacher"))


def aligned_job(model: PixArtTransformer, settings: Settings, data: PreparedFolder) -> TrainingJob:
    """The same with a block that learns what a frozen network sees of the images."""
    from .frozen_features import with_alignment
    if settings.train.mup_base_width:
        raise ValueError("muP has no rule for the head of an alignment; leave train.mup_base_width or method.align out")
    dtype = torch.bfloat16 if settings.train.precision == "bf16" else torch.float32
    network, kind = with_alignment(model, settings.method.align, dtype, settings.train.seed)
    job = full_job(model, of_method(kind, settings.method, data), data, settings, preset("teacher"))
    return replace(job, model=network, write=lambda average, file: job.write(average.get_submodule("network"), file))


def of_method(kind: Callable[..., Diffusion], method: NoisePrediction, data: PreparedFolder) -> Diffusion:
    """`Diffusion` or one of its kinds as the settings of a method have it."""
    return kind(data, method.caption_dropout, method.timesteps, method.weighting, method.weighting_cap)


def lcm_job(settings: Settings, data: PreparedFolder) -> TrainingJob:
    """A student that starts as its frozen teacher."""
    teacher = load_base(settings.model, settings.model.dtype, flexdit=True).requires_grad_(False)
    student = owned(load_base(settings.model, "fp32", flexdit=True)).requires_grad_(True)
    method: LcmMethod = settings.method
    return full_job(student, Consistency(data, teacher, method.guidance, method.huber_c, method.guidance_max), data,
                settings, preset("lcm"))


def flexdit_job(settings: Settings, data: PreparedFolder) -> TrainingJob:
    """A FlexDiT, or a PixArt model that becomes one, with the usual loss."""
    from ..model.to_flexdit import to_flexdit
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
    job = full_job(owned(model).requires_grad_(True), objective, data, settings, preset("teacher"))
    return replace(job, facts={**asdict(config.segments), **asdict(config.density)})


def full_job(model: PixArtTransformer, objective: Any, data: PreparedFolder, settings: Settings,
         sampling: Preset) -> TrainingJob:
    """All weights of one network. sampling: how the result is to be sampled, for the header of its file."""
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


def adapter_facts(method: Adapter | Rivalry) -> dict[str, object]:
    """What of a LoRA must not change when a training goes on."""
    return {"rank": method.rank, "alpha": method.alpha or float(method.rank), "targets": method.targets}


def lora_writer(output: OutputSettings, sampling: Mapping[str, str]) -> Write:
    """sampling: how a model with this LoRA is to be sampled, for the header of its file."""
    from .lora import save_lora
    return lambda average, file: save_lora(file, average, dtype_named(output.dtype), sampling)


def lora_job(base: PixArtTransformer, method: LoraMethod | LcmLoraMethod, data: Any, output: OutputSettings, seed: int
             ) -> TrainingJob:
    """Adapters in the base, which learn the images, or (LCM-LoRA) to be their own base's few-step student."""
    from .lcm_lora import ConsistencyLora
    from .lora import add_lora
    objective: Objective
    if isinstance(method, LcmLoraMethod):
        objective = ConsistencyLora(data, method.guidance, method.huber_c, method.guidance_max)
        sampling = preset("lcm-lora").to_header()
    else:
        objective, sampling = of_method(Diffusion, method, data), {}
    model = add_lora(base, method.rank, method.alpha, method.targets, method.dora, seed)
    facts = {**adapter_facts(method), "dora": method.dora}
    return TrainingJob(model, objective, data, output.file, lora_writer(output, sampling), base.config, facts)


def reward_job(settings: Settings) -> TrainingJob:
    """Adapters in a few-step model, which learn to make what rewards score high."""
    from ..generation.request import Request
    from ..reward.generator import check_differentiable
    from .ascent_files import ascent_of
    from .lora import add_lora
    method, output = settings.method, settings.output
    check_differentiable(Request(("x",), sampler=method.sampler, steps=method.steps, rule=method.rule))
    base = load_base(settings.model, settings.model.dtype)
    objective: Any = ascent_of(method, settings.data.folder, base.config)
    model = add_lora(base, method.rank, method.alpha, method.targets, method.dora, settings.train.seed)
    check_fit(base.config, objective.data, images=False)
    sampling = replace(preset(method.sampler), steps=method.steps, rule=method.rule).to_header()
    facts = {**adapter_facts(method), "dora": method.dora, "rewards": method.rewards}
    return TrainingJob(model, objective, objective.data, output.file, lora_writer(output, sampling), base.config, facts)


def controlnet_job(base: PixArtTransformer, method: ControlMethod, data: PreparedFolder, output: OutputSettings,
               seed: int) -> TrainingJob:
    """Trainable copies of the first blocks beside the base, and like them at the start: nothing is drawn by `seed`."""
    base.requires_grad_(False)
    control = PixArtControlNet.copy_of(base, method.blocks, attend_of(base)).float()

    def write(average: Any, file: Path) -> Path:
        return save_control(file, average.control, dtype_named(output.dtype))
    return TrainingJob(Controlled(base, control.requires_grad_(True)), of_method(ControlDiffusion, method, data), data,
                       output.file, write, base.config, {"blocks": method.blocks})


def ilf_job(base: PixArtTransformer, method: IlfMethod, data: PreparedFolder, output: OutputSettings,
           seed: int) -> TrainingJob:
    """A feedback block and scales beside the base; the block starts untrained, the scales at zero."""
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


def two_player_job(settings: Settings, data: PreparedFolder) -> TrainingJob:
    """A student of distribution matching and the fake score beside it; both start as their frozen teacher."""
    method = settings.method
    if method.rank:
        return matched_lora(load_base(settings.model, settings.model.dtype), method, data, settings.output,
                            settings.train.seed)
    teacher = load_base(settings.model, settings.model.dtype).requires_grad_(False)
    student, fake = (owned(load_base(settings.model, "fp32")).requires_grad_(True) for _ in range(2))
    job = full_job(student, game_of(method, data, teacher, student.config), data, settings, few_step_preset(method))
    return replace(job, rival=Rival(fake, method.fake_learning_rate, method.fake_clip))


def matched_lora(base: PixArtTransformer, method: Any, data: Any, output: OutputSettings, seed: int) -> TrainingJob:
    """Student and fake score as LoRAs on one base, which without them is the teacher."""
    from .average import copy_sharing_frozen
    from .lora import add_lora, without_adapters
    student = add_lora(base, method.rank, method.alpha, method.targets, seed=seed)
    fake = copy_sharing_frozen(student)

    def teacher(*given: Tensor, **conditions: Tensor) -> Tensor:
        with without_adapters(fake):
            return fake(*given, **conditions)
    return TrainingJob(student, game_of(method, data, teacher, base.config), data, output.file,
                       lora_writer(output, few_step_preset(method).to_header()), base.config, adapter_facts(method),
                       Rival(fake, method.fake_learning_rate, method.fake_clip))


def few_step_preset(method: TdmMethod | DmdMethod) -> Preset:
    """How such a student is to be sampled."""
    if isinstance(method, DmdMethod):
        return preset("dmd")
    return replace(preset("tdm"), steps=method.steps, rule=method.rule)


def game_of(method: TdmMethod | DmdMethod, data: Any, teacher: Callable[..., Tensor], config: PixArtConfig) -> Any:
    """What the two minimise, as the settings have it."""
    if isinstance(method, DmdMethod):
        distance = image_distance(method.regression_on, method.lpips, method.vae, config)
        return OneStep(data, teacher, config.channels, method.guidance, TIMESTEP, method.regression, method.share,
                       method.regression_on, distance)
    return Trajectory(data, teacher, config.channels, method.guidance, method.steps, TOTALS[method.rule],
                      method.separate, method.importance, method.huber)


# Method -> what makes its job of a frozen base, the settings of the method, data, output and the training's seed.
ON_FROZEN_BASE: dict[type, Callable[..., TrainingJob]] = {
    LoraMethod: lora_job, LcmLoraMethod: lora_job, ControlMethod: controlnet_job, IlfMethod: ilf_job}
# The same of methods that train all weights, or have two networks; they load what they need.
OF_WHOLE_NETWORKS: dict[type, Callable[[Settings, PreparedFolder], TrainingJob]] = {
    DiffusionMethod: diffusion_job, LcmMethod: lcm_job, FlexDiTMethod: flexdit_job, PTDiTMethod: flow_job,
    TdmMethod: two_player_job, DmdMethod: two_player_job}
