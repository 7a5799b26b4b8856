"""What a training is told, as checked values: tables of a TOML file, every field of which an option may replace.

A wrong value is one error that names the file (or the option), the key, what was found and what was expected.
"""
import os
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..config import VARIANTS, PixArtConfig
from ..pipeline import SAMPLERS
from .loop_config import LoopConfig

DTYPES = ("fp32", "bf16", "fp16")


def require(value: object, choices: Sequence[object], name: str) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; use {', '.join(map(str, choices))}")


def check_dropout(value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"caption_dropout is {value}; it must be at least 0 and below 1")


@dataclass(frozen=True)
class ModelSettings:
    """Where the weights come from."""

    base: Path | None = None      # transformer to start from; for lcm and lcm-lora also the teacher
    variant: str = "auto"         # of `base`, where the weights cannot tell
    new: PixArtConfig | None = None   # instead of base: train from nothing
    seed: int = 0                 # of the starting weights of `new`
    dtype: str = "fp32"           # of frozen weights: teacher, base of LoRA or ControlNet
    attention: str = "sdpa"       # or "matmul", faster for small models on a CPU

    def __post_init__(self) -> None:
        require(self.variant, ("auto", *VARIANTS), "variant")
        require(self.dtype, DTYPES, "dtype")
        require(self.attention, ("sdpa", "matmul"), "attention")
        if (self.base is None) == (self.new is None):
            raise ValueError("give either base, the transformer to start from, or a table new, to train from nothing")


@dataclass(frozen=True)
class DataSettings:
    """What is trained on."""

    folder: Path                  # written by python -m pixart prepare


@dataclass(frozen=True)
class DiffusionMethod:
    """Fine-tuning, or training from nothing."""

    caption_dropout: float = 0.1  # share of captions left out, so that guidance works

    def __post_init__(self) -> None:
        check_dropout(self.caption_dropout)


@dataclass(frozen=True)
class LcmMethod:
    """Latent consistency distillation; the grid has 50 points, k = 20 timesteps apart."""

    guidance: float = 4.5         # w: 4.5 is a classifier-free guidance scale of 5.5
    huber_c: float = 0.001
    guidance_max: float | None = None   # draw w between guidance and this for each picture; the student is not told it

    def __post_init__(self) -> None:
        if self.guidance < 0 or self.huber_c <= 0:
            raise ValueError(f"guidance is {self.guidance}, huber_c {self.huber_c}; expected >= 0 and > 0")
        if self.guidance_max is not None and self.guidance_max <= self.guidance:
            raise ValueError(f"guidance_max is {self.guidance_max}; it must be above guidance, {self.guidance}")


@dataclass(frozen=True)
class Adapter:
    """The size of a LoRA."""

    rank: int = 32
    alpha: float | None = None    # the change is alpha / rank * B A; rank by default
    targets: tuple[str, ...] | None = None   # ends of layer names, such as "attn.qkv"; all the official trainers adapt
    dora: bool = False            # learn the length of every row too

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
class LoraMethod(Adapter, DiffusionMethod):
    """Fine-tuning with adapters."""

    def __post_init__(self) -> None:
        Adapter.__post_init__(self)
        DiffusionMethod.__post_init__(self)


@dataclass(frozen=True)
class ControlMethod(DiffusionMethod):
    """A ControlNet on a frozen base."""

    blocks: int = 13              # copied from the base, at most its depth - 1


@dataclass(frozen=True)
class ValidateSettings:
    """Pictures drawn while the training runs, with the averaged weights."""

    prompts: tuple[str, ...] = ()     # none: no pictures
    hints: tuple[Path, ...] = ()      # for a ControlNet: an edge map a prompt, white on black
    every: int = 500                  # steps
    vae: Path | None = None
    t5: Path | None = None
    bits: int = 8                     # of T5
    sampler: str = "dpm"
    steps: int = 20
    guidance: float = 4.5             # of "dpm"
    width: int | None = None          # pixels; by default what the model was trained on
    height: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.bits, (16, 8, 4), "bits")
        require(self.sampler, SAMPLERS, "sampler")
        if self.every < 1 or self.steps < 1:
            raise ValueError(f"every is {self.every}, steps {self.steps}; both must be at least 1")
        if self.prompts and (self.vae is None or self.t5 is None):
            raise ValueError("prompts need vae and t5, the files to encode and to draw with")
        if self.hints and len(self.hints) != len(self.prompts):
            raise ValueError(f"{len(self.hints)} hints for {len(self.prompts)} prompts; there must be one each")


@dataclass(frozen=True)
class OutputSettings:
    """Where the results go."""

    folder: Path                  # state to go on from, event files of TensorBoard, validation pictures
    file: Path                    # the trained weights; without .safetensors a folder, as diffusers or (LoRA) peft has
    dtype: str = "fp16"

    def __post_init__(self) -> None:
        require(self.dtype, DTYPES, "dtype")


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
        if self.model.new is not None and type(self.method) is not DiffusionMethod:
            raise ValueError("model.new trains from nothing, which only diffusion can; give model.base")
        if isinstance(self.method, ControlMethod) and self.output.file.suffix != ".safetensors":
            raise ValueError(f"output.file is {self.output.file}; the name of a ControlNet must end in .safetensors")
        if self.validate.prompts and isinstance(self.method, ControlMethod) and not self.validate.hints:
            raise ValueError("validate.prompts of a ControlNet need validate.hints, an edge map each")


METHODS = {"diffusion": DiffusionMethod, "lcm": LcmMethod, "lcm-lora": LcmLoraMethod, "controlnet": ControlMethod,
           "lora": LoraMethod}


class Source:
    """The tables of a file, and what the command line puts in their place."""

    def __init__(self, file: Path | None, replaced: Mapping[str, str]) -> None:
        """replaced: "section.field" -> a TOML value, or a text without quotes."""
        self.file, self.values = file, read_toml(file) if file is not None else {}
        self.replaced = set(replaced)
        for key, text in replaced.items():
            *parents, name = key.split(".")
            table = self.values
            for parent in parents:
                table = table.setdefault(parent, {})
                if not isinstance(table, dict):
                    raise ValueError(f"--set {key}: {parent} is not a table")
            table[name] = toml_value(text)

    def place(self, key: str) -> str:
        """Where a value was given, for an error."""
        return f"--set {key}" if key in self.replaced or self.file is None else f"{self.file}: {key}"

    def folder(self, key: str) -> Path:
        """What a relative path is relative to: the file it stands in, or the current folder."""
        return Path() if key in self.replaced or self.file is None else self.file.parent


def read_settings(method: str, file: Path | None, replaced: Mapping[str, str]) -> Settings:
    """Settings of a key of METHODS. Raises ValueError, FileNotFoundError for the file itself."""
    source = Source(file, replaced)
    return build(Settings, source.values, "", source, {"method": METHODS[method]})


def read_toml(file: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    if not file.is_file():
        raise FileNotFoundError(f"there is no configuration file {file}")
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a TOML file: {error}") from error


def toml_value(text: str) -> Any:
    """`3` -> 3, `[1, 2]` -> a list, `bf16` -> the text itself."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def build(kind: type, table: object, key: str, source: Source, chosen: Mapping[str, type] | None = None) -> Any:
    """A dataclass from a table; `chosen` says the type of a field where the class leaves it open."""
    if not isinstance(table, Mapping):
        raise ValueError(f"{source.place(key)} is {table!r}; expected a table [{key}]")
    hints = {**get_type_hints(kind), **(chosen or {})}
    known = [f.name for f in fields(kind)]
    for name in table:
        if name not in known:
            raise ValueError(f"{source.place(join(key, name))} is unknown; known are {', '.join(known)}")
    values = {}
    for f in fields(kind):
        here = join(key, f.name)
        open_table = is_dataclass(hints[f.name]) and f.default is MISSING
        if f.name in table or open_table:
            values[f.name] = convert(table.get(f.name, {}), hints[f.name], here, source)
        elif f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"{source.place(here)} is missing; give it there or as --set {here}=...")
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{source.place(key) if key else source.file or 'command line'}: {error}") from error


def convert(value: Any, kind: Any, key: str, source: Source) -> Any:
    """A TOML value as the type a field has."""
    if is_dataclass(kind):
        return build(kind, value, key, source)
    if get_origin(kind) in (Union, types.UnionType):
        return convert(value, next(part for part in get_args(kind) if part is not type(None)), key, source)
    if get_origin(kind) is tuple:
        return convert_tuple(value, get_args(kind), key, source)
    if kind is Path and isinstance(value, str):
        return source.folder(key) / os.path.expanduser(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise ValueError(f"{source.place(key)} is {value!r}; expected {NAMES[kind]}")
    return value


def convert_tuple(value: Any, kinds: tuple[Any, ...], key: str, source: Source) -> tuple[Any, ...]:
    if not isinstance(value, list) or (kinds[-1] is not Ellipsis and len(value) != len(kinds)):
        count = "" if kinds[-1] is Ellipsis else f"{len(kinds)} "
        raise ValueError(f"{source.place(key)} is {value!r}; expected a list of {count}values")
    kinds = (kinds[0],) * len(value) if kinds[-1] is Ellipsis else kinds
    return tuple(convert(part, kind, key, source) for part, kind in zip(value, kinds))


NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", Path: "a path"}


def join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def options(method: str) -> Iterator[tuple[str, str]]:
    """("section.field", what it is by default) of everything a method can be told."""
    hints = {**get_type_hints(Settings), "method": METHODS[method]}
    for section in fields(Settings):
        for f in fields(hints[section.name]):
            needed = f.default is MISSING and f.default_factory is MISSING
            yield f"{section.name}.{f.name}", "required" if needed else f"default: {f.default}"
