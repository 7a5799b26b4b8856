"""How a checkpoint should be sampled: sampler, steps, timestep rule and guidance, from its file or guessed by its name.

The trainers of this package write it into the header of their results (`pixart_sampling`). Published files say nothing,
but their names often do.
"""
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..weights.errors import CheckpointError
from ..weights.settings import Check, checked_entries, number, one_of, parse_json, whole
from .samplers import SAMPLERS

PRESET_KEY = "pixart_sampling"    # of the header entry
NOT_SAID = "neither its file nor its name says otherwise"
PRESET_METHODS = ("teacher", "lcm", "lcm-lora", "tdm", "dmd")
FLASH = "flash"               # what Flash Diffusion calls its LoRA for PixArt-alpha, sampled as an LCM by diffusers
# The published base models under their own names, which no model that was changed since has.
_BASE = r"(^|--)pixart-(sigma-)?xl-2-(sam-)?(256x256|512x512|512-ms|1024-ms|2k-ms)([-_.](fp16|bf16|fp8))?(\.\w+)?$"
_NAMES = ((r"(?<![a-z])flash(?![a-z])", FLASH), (r"(?<![a-z])dmd(?![a-z])", "dmd"), (r"(?<![a-z])tdm(?![a-z])", "tdm"),
          (r"lcm[-_ ]?lora|lora[-_ ]?lcm", "lcm-lora"), (r"(?<![a-z])lcm(?![a-z])", "lcm"),
          (r"pixart[-_ ]?delta", "lcm"), (r"(?<![a-z])teacher(?![a-z])", "teacher"), (_BASE, "teacher"))
# Names that say nothing: those that diffusers and peft give every file, and folders inside a published repository.
_ANY_FILE = re.compile(r"(diffusion_pytorch_model|pytorch_model|model|adapter_model|pytorch_lora_weights)([.-].*)?")
_ANY_FOLDER = re.compile(r"transformer(_\w+)?|unet|snapshots|[0-9a-f]{40}|checkpoint-\d+")


@dataclass(frozen=True)
class Preset:
    """One way to sample, and where it was found."""

    method: str                   # one of PRESET_METHODS
    sampler: str                  # a key of SAMPLERS
    steps: int
    rule: str = "official"        # of the sampler's timestep rules
    guidance: float = 1.0         # classifier-free scale
    source: str = "as chosen"     # for display

    @property
    def line(self) -> str:
        """For display, such as "tdm: 4 steps at 899, 674, 449, 224, cfg 1 (as the file says)"."""
        times = SAMPLERS[self.sampler].times(self.steps, self.rule)
        at = f" at {', '.join(f'{time:g}' for time in times)}" if len(times) <= 8 else ""
        return (f"{self.method}: {self.steps} step{'s' * (self.steps > 1)}{at}, sampler {self.sampler}, "
                f"cfg {self.guidance:g} ({self.source})")

    def mismatch(self, sampler: str) -> str | None:
        """A warning for the user if the checkpoint is sampled with another sampler than it was trained for.

        A teacher works with every solver; only few-step samplers do not fit it.
        """
        if sampler == self.sampler or self.source == NOT_SAID:
            return None
        if self.method == "teacher" and SAMPLERS[sampler].guided:
            return None
        return (f"made for the sampler {self.sampler} ({self.method}, {self.steps} step{'s' * (self.steps > 1)}), but "
                f"sampled with {sampler}: {self.source}")

    def with_steps(self, steps: int | None) -> "Preset":
        """The same with another number of steps; None keeps its own. ValueError if the sampler cannot take it."""
        changed = self if steps is None else replace(self, steps=steps)
        SAMPLERS[changed.sampler].times(changed.steps, changed.rule)
        return changed

    def to_header(self) -> dict[str, str]:
        """The metadata entry that `preset_from_header` reads."""
        fields = asdict(self)
        del fields["source"]
        return {PRESET_KEY: json.dumps(fields)}


def preset(method: str, guidance: float = 4.5) -> Preset:
    """What is usual for a method; guidance is that of a teacher. ValueError for unknown ones."""
    if method not in PRESET_METHODS:
        raise ValueError(f"unknown method {method!r}; use {', '.join(PRESET_METHODS)}")
    sampler = {"teacher": "dpm", "lcm-lora": "lcm"}.get(method, method)
    return Preset(method, sampler, SAMPLERS[sampler].steps, guidance=guidance if SAMPLERS[sampler].guided else 1.0)


PRESET_FIELDS: dict[str, Check] = {"method": one_of(*PRESET_METHODS), "sampler": one_of(*SAMPLERS),
                                   "steps": whole(1, 999),
                                   "rule": one_of("official", *sorted({r for s in SAMPLERS.values() for r in s.rules})),
                                   "guidance": number(0, 100)}


def preset_from_header(metadata: Mapping[str, str], path: Path) -> Preset | None:
    """The preset in a file's header, or None. Raises CheckpointError that names the field and the file."""
    if PRESET_KEY not in metadata:
        return None
    where = f"{PRESET_KEY} of its header"
    entries = parse_json(metadata[PRESET_KEY], path, where)
    known: dict[str, Any] = checked_entries({name: value for name, value in entries.items() if name in PRESET_FIELDS},
                                            PRESET_FIELDS, path, where)
    usual = preset(known.get("method", "teacher"))
    found = replace(usual, **known, source=f"as {path.name} says")
    try:
        return found.with_steps(None)
    except ValueError as error:
        raise CheckpointError(path, f"{where} is not usable: {error}", "a way to sample") from error


def by_name(path: str | Path, guidance: float = 4.5) -> Preset | None:
    """The preset guessed from the name of a file or folder; None if the name says nothing.

    For a file with a generic name, such as diffusion_pytorch_model, the folder of its repository counts.
    """
    name = telling_name(Path(path))
    for pattern, method in _NAMES:
        if re.search(pattern, name.lower()):
            found = preset("lcm-lora" if method == FLASH else method, guidance)
            rule = "diffusers" if method == FLASH else found.rule
            return replace(found, rule=rule, source=f"guessed by the name {name}")
    return None


def telling_name(path: Path) -> str:
    """The file's name, or that of the nearest folder that is not generic, if the file's is."""
    folders = [path.name, *reversed(path.parts[:-1])]
    if _ANY_FILE.fullmatch(path.name.lower()):
        del folders[0]
    return next((each for each in folders if not _ANY_FOLDER.fullmatch(each.lower())), path.name)


def found_in(files: Sequence[tuple[Path, Mapping[str, str]]], guidance: float = 4.5) -> Preset:
    """The preset of a checkpoint and its LoRAs, each with its header: from the last that has one, else a teacher's."""
    for path, metadata in reversed(files):
        said = preset_from_header(metadata, path) or by_name(path, guidance)
        if said is not None:
            return said
    return replace(preset("teacher", guidance), source=NOT_SAID)
