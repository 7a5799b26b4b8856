"""What each method of training is told: the table `method` of a TOML file, one class a method.

The comment behind a field is what `--help` and the documentation say of it.
"""
import math
from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from pathlib import Path

from ..config import PixArtConfig
from ..model.flexdit_config import Density, FlexDiTConfig, Segments
from ..sampling.samplers import SAMPLERS
from ..sampling.tdm import TOTALS
from .alignment import Alignment
from .one_step import REGRESSION_ON
from .timesteps import Timesteps
from .trajectory import HUBER
from .weighting import check_weighting


def require(value: object, choices: Collection[object], name: str) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; use {', '.join(map(str, choices))}")


def check_dropout(value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"caption_dropout is {value}; it must be at least 0 and below 1")


@dataclass(frozen=True)
class NoisePrediction:
    """What all methods share that predict noise."""

    caption_dropout: float = 0.1  # share of captions replaced by the empty one, so that guidance works
    timesteps: Timesteps = Timesteps()
    weighting: str = "none"       # weight of an image's loss by timestep: none, min-snr, or v: min(1 + 1/SNR, cap)
    weighting_cap: float = 20.0   # v: maximum weight, before weights are scaled to mean 1

    def __post_init__(self) -> None:
        check_dropout(self.caption_dropout)
        check_weighting(self.weighting, self.weighting_cap)


@dataclass(frozen=True)
class DiffusionMethod(NoisePrediction):
    """Fine-tuning, or training from scratch."""

    align: Alignment = Alignment()


@dataclass(frozen=True)
class LcmMethod:
    """Latent consistency distillation; the grid has 50 points, k = 20 timesteps apart."""

    guidance: float = 4.5         # w: 4.5 equals a classifier-free guidance scale of 5.5
    huber_c: float = 0.001        # width of the quadratic part of the Huber loss
    guidance_max: float | None = None   # draw w between guidance and this for each image; the student does not see it

    def __post_init__(self) -> None:
        if self.guidance < 0 or self.huber_c <= 0:
            raise ValueError(f"guidance is {self.guidance}, huber_c {self.huber_c}; expected >= 0 and > 0")
        if self.guidance_max is not None and self.guidance_max <= self.guidance:
            raise ValueError(f"guidance_max is {self.guidance_max}; it must be above guidance, {self.guidance}")


@dataclass(frozen=True)
class Adapter:
    """The size of a LoRA."""

    rank: int = 32                # rank of the LoRA
    alpha: float | None = None    # the LoRA is scaled by alpha / rank; none: alpha = rank
    targets: tuple[str, ...] | None = None   # suffixes of layer names ("attn.qkv"); none: as the official trainers
    dora: bool = False            # DoRA: also learn the norm of every row

    def __post_init__(self) -> None:
        if self.rank < 1 or (self.alpha is not None and self.alpha <= 0):
            raise ValueError(f"rank is {self.rank}, alpha {self.alpha}; rank must be at least 1, alpha above 0")


@dataclass(frozen=True)
class LcmLoraMethod(Adapter, LcmMethod):
    """Distillation into adapters."""

    def __post_init__(self) -> None:
        Adapter.__post_init__(self)
        LcmMethod.__post_init__(self)


@dataclass(frozen=True)
class LoraMethod(Adapter, NoisePrediction):
    """Fine-tuning with adapters."""

    def __post_init__(self) -> None:
        Adapter.__post_init__(self)
        NoisePrediction.__post_init__(self)


@dataclass(frozen=True)
class Rivalry:
    """What the methods with two players share: the student, and the fake score that learns what it generates."""

    guidance: float = 4.5         # classifier-free guidance scale of the teacher, 1 for none
    fake_learning_rate: float = 2e-5   # learning rate of the fake score, constant
    fake_clip: float = math.inf   # maximum gradient norm of the fake score; inf: no clipping
    rank: int = 0                 # 0: all weights; else student and fake score are LoRAs of this rank on one base
    alpha: float | None = None    # the LoRAs are scaled by alpha / rank; none: alpha = rank
    targets: tuple[str, ...] | None = None   # LoRAs: suffixes of layer names; none: as the official trainers

    def __post_init__(self) -> None:
        if self.guidance < 1 or self.fake_learning_rate <= 0 or self.fake_clip <= 0:
            raise ValueError(f"guidance is {self.guidance}, fake_learning_rate {self.fake_learning_rate}, fake_clip "
                             f"{self.fake_clip}; expected at least 1, and above 0")
        if self.rank < 0 or (self.alpha is not None and self.alpha <= 0):
            raise ValueError(f"rank is {self.rank}, alpha {self.alpha}; rank must be at least 0, alpha above 0")


@dataclass(frozen=True)
class TdmMethod(Rivalry):
    """Trajectory distribution matching."""

    steps: int = 4                # sampling steps of the student
    rule: str = "official"        # timesteps: official (899, 674, 449, 224) or tdm-800 (799, 599, 399, 199)
    separate: bool = True         # compare only at noise levels of the step's own part of the trajectory
    importance: bool = True       # weight the fake score's loss by the likelihood of an image's noise
    huber: str = "element"        # Huber loss of the student: element (published code), vector (paper), none (squares)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rule, TOTALS, "rule")
        require(self.huber, HUBER, "huber")
        if not 1 <= self.steps <= 8:
            raise ValueError(f"steps is {self.steps}; a TDM student takes 1 to 8")


@dataclass(frozen=True)
class DmdMethod(Rivalry):
    """One-step distillation by distribution matching."""

    guidance: float = 3.0         # classifier-free guidance scale of the teacher, 1 for none
    fake_learning_rate: float = 1e-6   # learning rate of the fake score, constant
    fake_clip: float = 10.0       # maximum gradient norm of the fake score; inf: no clipping
    regression: float = 0.25      # weight of the distance to the teacher's image of the same noise; 0: no pairs
    share: float = 0.5            # share of the images of a step that the regression loss sees
    regression_on: str = "latents"   # what is compared: latents; images by lpips (as published) or by judge (judge A)
    lpips: Path | None = None     # folder with vgg16-397923af.pth and vgg.pth, for regression_on = lpips
    vae: Path | None = None       # VAE for comparing images; none: PixArt-mini's, for its models

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.regression_on, REGRESSION_ON, "regression_on")
        if not self.regression and self.regression_on != "latents":
            raise ValueError(f"regression is 0, so regression_on = {self.regression_on} has no effect; leave one out")
        for name, needed in (("lpips", ("lpips",)), ("vae", ("lpips", "judge"))):
            if getattr(self, name) and self.regression_on not in needed:
                raise ValueError(f"{name} has no effect with regression_on = {self.regression_on}; leave it out")
        if self.regression < 0 or not 0 < self.share <= 1:
            raise ValueError(f"regression is {self.regression}, share {self.share}; expected at least 0, and above 0 "
                             "up to 1")


@dataclass(frozen=True)
class IlfMethod:
    """Inner loop feedback on a frozen base."""

    first: int | None = None      # first block that runs twice, from 0; none: where the middle half begins (7 of 28)
    last: int | None = None       # last block that runs twice, from 0; none: where the middle half ends (20 of 28)
    steps: int = 10               # sampling steps with feedback
    substeps: int = 2             # steps of the base model that one step with feedback replaces
    guidance: float = 4.5         # classifier-free guidance scale of the base model, 1 for none

    def __post_init__(self) -> None:
        if self.substeps < 2 or self.steps < 1 or self.steps * self.substeps > 999:
            raise ValueError(f"steps is {self.steps}, substeps {self.substeps}; expected at least 1 and 2, and at most "
                             "999 in all")

    def blocks(self, depth: int) -> tuple[int, int]:
        """First and last of a network of so many blocks."""
        last = max(depth * 3 // 4 - 1, 0) if self.last is None else self.last
        return (min(depth // 4, last) if self.first is None else self.first), last


@dataclass(frozen=True)
class FlexDiTMethod(NoisePrediction):
    """Fine-tuning of a checkpoint that becomes a FlexDiT, or is one."""

    pooling: int | None = None    # first blocks, which only pool; none: 2, or 1 if there are fewer than 16 blocks
    groups: int | None = None     # groups of merge, sparse, recover and dense blocks; none: as many as fit
    sparse: int | None = None     # blocks per group on sparse tokens; none: 3
    dense: int | None = None      # blocks per group on all tokens; none: 1
    top: int | None = None        # last blocks, on all tokens; none: the remaining ones
    r_min: float | None = None    # share of tokens pruned at low noise; none: 0.61, or that of base
    r_max: float | None = None    # share of tokens pruned at pure noise; none: 0.86, or that of base
    pieces: int | None = None     # steps from r_min to r_max over the timesteps, 0: linear; none: 3, or those of base
    one_density: bool = True      # all images of a step use timesteps of one density: faster, and as published

    def config(self, base: PixArtConfig) -> FlexDiTConfig:
        """Of what is trained. ValueError where the segments do not fit the base, or it is one in other segments."""
        wished = {name: value for name, value in vars(self).items() if value is not None}
        segments, density = ({f.name: wished[f.name] for f in fields(kind) if f.name in wished}
                             for kind in (Segments, Density))
        if isinstance(base, FlexDiTConfig):
            if replace(base.segments, **segments) != base.segments:
                raise ValueError(f"model.base is a FlexDiT of {base.segments.text} already; leave method.pooling, "
                                 "groups, sparse, dense and top out")
            return replace(base, density=replace(base.density, **density))
        whole = len(segments) == len(fields(Segments))
        chosen = Segments(**segments) if whole else replace(Segments.for_depth(base.depth), **segments)
        return FlexDiTConfig.of(base, chosen, Density(**density))


@dataclass(frozen=True)
class PTDiTMethod:
    """Rectified flow of a PT-DiT."""

    caption_dropout: float = 0.1  # share of captions replaced by the empty one, so that guidance works
    centre: float = 0.0           # noise levels: mean of their logit, above 0 for more noise
    spread: float = 1.0           # noise levels: standard deviation of their logit; 0: uniform levels

    def __post_init__(self) -> None:
        check_dropout(self.caption_dropout)
        if not 0 <= self.spread <= 10 or not abs(self.centre) <= 10:
            raise ValueError(f"spread is {self.spread}, centre {self.centre}; expected 0 to 10, and -10 to 10")


@dataclass(frozen=True)
class ControlMethod(NoisePrediction):
    """A ControlNet on a frozen base."""

    blocks: int = 13              # blocks copied from the base, at most its depth - 1


@dataclass(frozen=True)
class RewardLoraMethod(Adapter):
    """Reward fine-tuning of a few-step model with adapters."""

    rewards: tuple[str, ...] = ("judge",)   # each NAME, NAME:WEIGHT or NAME=PATH:WEIGHT, as in `reno --reward`
    folder: Path | None = None    # folder with the reward models under their published names
    tokenizer: Path | None = None   # folder of CLIP's tokenizer, if it is not next to the weights
    relevance: float = 1.0        # w: weight of what all captions have in common, 0 to 1; LongAlign 0.3
    common: str = "captions"      # where that is estimated: captions (all of the data) or batch (as published)
    sampler: str = "lcm"          # sampler: lcm, tdm or dmd
    steps: int = 4                # steps of the sampler
    rule: str = "official"        # timestep rule of the sampler
    gradient_steps: int = 2       # number of steps with gradients, evenly spaced from a random first one
    size: int | None = None       # side of an image in pixels; none: the training resolution
    vae: Path | None = None       # VAE; none: PixArt-mini's, for its models
    t5: Path | None = None        # T5 for the captions; none: PixArt-mini's, for its models
    bits: int = 8                 # precision of T5: 16, 8 or 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.sampler, SAMPLERS, "sampler")
        require(self.bits, (16, 8, 4), "bits")
        require(self.common, ("captions", "batch"), "common")
        if not 1 <= self.gradient_steps <= self.steps:
            raise ValueError(f"gradient_steps is {self.gradient_steps}; it must be 1 to {self.steps}, all steps")
        if not 0 <= self.relevance <= 1:
            raise ValueError(f"relevance is {self.relevance}; it must lie between 0 and 1")
        if not self.rewards:
            raise ValueError("there is no reward; give at least one")


METHOD_CLASSES = {"diffusion": DiffusionMethod, "lcm": LcmMethod, "lcm-lora": LcmLoraMethod,
                  "controlnet": ControlMethod, "lora": LoraMethod, "tdm": TdmMethod, "dmd": DmdMethod, "ilf": IlfMethod,
                  "flexdit": FlexDiTMethod, "pt-dit": PTDiTMethod, "reward-lora": RewardLoraMethod}
