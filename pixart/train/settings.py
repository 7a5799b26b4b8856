"""What a training is told, as checked values: the tables that a TOML file may have.

The comment behind a field is what `--help` and the documentation say of it.
"""
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from ..config import VARIANTS, PixArtConfig
from ..dtypes import COMPUTE_DTYPES
from ..pt_dit.config import PTDiTConfig
from ..sampling.samplers import SAMPLERS
from .from_toml import Source, build_settings
from .loop_config import LoopConfig
from .method_settings import METHOD_CLASSES, ControlMethod, DiffusionMethod, IlfMethod, PTDiTMethod, require
from .options import Option, setting_options


@dataclass(frozen=True)
class ModelSettings:
    """Where the weights come from."""

    base: Path | None = None      # transformer to start from; for lcm, lcm-lora, tdm and dmd also the teacher
    variant: str = "auto"         # variant of base if the weights do not determine it, such as alpha-512
    new: PixArtConfig | None = None   # a table in place of base: configuration of a model trained from scratch
    seed: int = 0                 # seed of the initial weights of new
    dtype: str = "fp32"           # type of frozen weights (teacher, base of a LoRA or ControlNet): fp32, bf16, fp16
    attention: str = "sdpa"       # sdpa, or matmul (faster for small models on a CPU)

    def __post_init__(self) -> None:
        require(self.variant, ("auto", *VARIANTS), "variant")
        require(self.dtype, COMPUTE_DTYPES, "dtype")
        require(self.attention, ("sdpa", "matmul"), "attention")
        if (self.base is None) == (self.new is None):
            raise ValueError("give either base, the transformer to start from, or a table new, to train from scratch")


@dataclass(frozen=True)
class PTDiTModelSettings(ModelSettings):
    """Where the weights of a PT-DiT come from."""

    new: PTDiTConfig | None = None    # a table in place of base: configuration of a PT-DiT trained from scratch

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant != "auto" or self.dtype != "fp32":
            raise ValueError("variant and dtype have no effect on a PT-DiT, which is trained whole; leave them out")


@dataclass(frozen=True)
class DataSettings:
    """What is trained on."""

    folder: Path                  # folder from `prepare`; for dmd from `pairs`; for reward-lora a file of captions


@dataclass(frozen=True)
class ValidateSettings:
    """Images generated while the training runs, with the averaged weights."""

    prompts: tuple[str, ...] = ()     # prompts for validation images; none: no images
    hints: tuple[Path, ...] = ()      # for a ControlNet: one edge map per prompt, white on black
    every: int = 500                  # steps between validation images
    vae: Path | None = None           # VAE
    t5: Path | None = None            # T5
    bits: int = 8                     # precision of T5: 16, 8 or 4
    sampler: str = "dpm"              # dpm for a base model, lcm or tdm for a few-step student, dmd for a one-step one
    steps: int = 20                   # steps of the sampler
    guidance: float = 4.5             # guidance scale, for dpm
    width: int | None = None          # pixels; none: the training resolution
    height: int | None = None         # pixels
    seed: int = 0                     # seed of the initial noise

    def __post_init__(self) -> None:
        require(self.bits, (16, 8, 4), "bits")
        require(self.sampler, SAMPLERS, "sampler")
        if self.every < 1 or self.steps < 1:
            raise ValueError(f"every is {self.every}, steps {self.steps}; both must be at least 1")
        if self.prompts and (self.vae is None or self.t5 is None):
            raise ValueError("prompts need vae and t5, the files to encode them and to decode images with")
        if self.hints and len(self.hints) != len(self.prompts):
            raise ValueError(f"{len(self.hints)} hints for {len(self.prompts)} prompts; there must be one each")


@dataclass(frozen=True)
class OutputSettings:
    """Where the results go."""

    folder: Path                  # folder of the saved state, TensorBoard files and validation images
    file: Path                    # trained weights: .safetensors, else a folder in diffusers or (LoRA) peft layout
    dtype: str = "fp16"           # type of the written weights: fp32, bf16 or fp16

    def __post_init__(self) -> None:
        require(self.dtype, COMPUTE_DTYPES, "dtype")


@dataclass(frozen=True)
class Settings:
    """A whole training. The class of `method` says which."""

    model: ModelSettings
    data: DataSettings
    train: LoopConfig
    method: Any
    output: OutputSettings
    validate: ValidateSettings = field(default_factory=ValidateSettings)

    def __post_init__(self) -> None:
        if self.model.dtype != "fp32" and self.train.precision == "no":
            raise ValueError(f"model.dtype is {self.model.dtype}, which needs train.precision bf16 or fp16")
        if self.model.new is not None and type(self.method) not in (DiffusionMethod, PTDiTMethod):
            raise ValueError("model.new trains from scratch, which only diffusion can; give model.base")
        if isinstance(self.method, PTDiTMethod):
            check_pt_dit_settings(self)
        if isinstance(self.method, ControlMethod) and self.output.file.suffix != ".safetensors":
            raise ValueError(f"output.file is {self.output.file}; the name of a ControlNet must end in .safetensors")
        if isinstance(self.method, IlfMethod) and self.validate.prompts:
            raise ValueError("validate.prompts have no effect with ilf; use generate --feedback")
        if isinstance(self.method, IlfMethod) and self.output.file.suffix != ".safetensors":
            raise ValueError(f"output.file is {self.output.file}; the name of feedback must end in .safetensors")
        if self.validate.prompts and isinstance(self.method, ControlMethod) and not self.validate.hints:
            raise ValueError("validate.prompts of a ControlNet need validate.hints, an edge map each")


def check_pt_dit_settings(settings: Settings) -> None:
    """Refuse what a PT-DiT cannot be trained with."""
    if settings.validate.prompts:
        raise ValueError("validate.prompts have no effect with pt-dit; use generate")
    if settings.train.mup_base_width:
        raise ValueError("train.mup_base_width has no effect with pt-dit: muP has no rules for it")
    if settings.output.file.suffix != ".safetensors":
        raise ValueError(f"output.file is {settings.output.file}; the name of a PT-DiT must end in .safetensors")


MODEL_CLASSES: dict[str, type[ModelSettings]] = {"pt-dit": PTDiTModelSettings}      # of networks of their own


def method_tables(method: str) -> dict[str, type]:
    """The tables that depend on the method."""
    return {"method": METHOD_CLASSES[method], "model": MODEL_CLASSES.get(method, ModelSettings)}


def read_settings(method: str, file: Path | None, replaced: Mapping[str, str]) -> Settings:
    """Settings of a key of METHOD_CLASSES. Raises ValueError, FileNotFoundError for the file itself."""
    source = Source(file, replaced)
    return build_settings(Settings, source.values, "", source, method_tables(method))


def options(method: str) -> Iterator[Option]:
    """Everything a method can be told."""
    hints = {**get_type_hints(Settings), **method_tables(method)}
    for section in fields(Settings):
        yield from setting_options(hints[section.name], section.name)
