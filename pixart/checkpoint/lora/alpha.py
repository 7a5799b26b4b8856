"""The scale of a LoRA, alpha / rank: where files store alpha, and its default where they do not."""
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...weights.errors import CheckpointError
from ...weights.settings import Check, checked_entries, flag, number, optional, parse_json, read_json, table, whole

LORA_FILE = "a LoRA of a PixArt transformer (.safetensors, or a folder with adapter_config.json)"
ADAPTER_METADATA = "lora_adapter_metadata"      # header entry where diffusers keeps the settings of peft
PEFT_SETTINGS = "adapter_config.json"
OFFICIAL_ALPHA = 8.0        # peft's default, which the official trainers never change and often do not write down
LARGEST_ALPHA = 1e6
ADAPTER_CONFIG_FIELDS: dict[str, Check] = {"r": whole(1, 1 << 16), "lora_alpha": number(-LARGEST_ALPHA, LARGEST_ALPHA),
                                           "alpha": number(-LARGEST_ALPHA, LARGEST_ALPHA),
                                           "use_rslora": optional(flag), "alpha_pattern": optional(table),
                                           "rank_pattern": optional(table)}
# Regular expressions of module names that match in bounded time.
PATTERN = re.compile(r"\^?(?:[\w-]|\\?\.|\.\*|\\d\+?)+\$?")
MOST_WILDCARDS = 3


@dataclass(frozen=True)
class ScaleSettings:
    """The scale by settings outside of the tensors, in peft's terms."""

    source: str                              # for display, such as "alpha 8 from adapter_config.json"
    alpha: float | None = None               # None: the rank
    rslora: bool = False
    alphas: Mapping[str, float] = field(default_factory=dict)       # regular expression of a name's end -> alpha

    def scale(self, modules: Sequence[str], rank: int) -> float:
        """The scale of a module, given all its names, such as "transformer_blocks.0.attn1.to_q"."""
        alpha = next((alpha for end, alpha in self.alphas.items()
                      if any(re.match(rf"(.*\.)?({end})$", module) for module in modules)), self.alpha)
        return 1.0 if alpha is None else alpha / (rank ** 0.5 if self.rslora else rank)


def find_settings(file: Path, by_peft: bool, metadata: Mapping[str, str], rank: int) -> ScaleSettings:
    """The settings for modules without an alpha tensor, from the most trustworthy source.

    by_peft: whether the keys have peft's names. metadata: the file's header. rank: of the file's tensors.
    """
    header = in_header(file, metadata)
    if header is not None:
        return header
    if not by_peft:
        return ScaleSettings("alpha not said, taken as the rank")
    source = f"alpha {OFFICIAL_ALPHA:g} assumed, as the official trainers have it"
    beside = file.with_name(PEFT_SETTINGS)
    if beside.is_file():
        entries = checked_entries(read_json(beside), ADAPTER_CONFIG_FIELDS, beside, "its LoRA settings")
        if rank in (entries.get("r", rank), *(entries.get("rank_pattern") or {}).values()):
            return from_peft_settings(entries, PEFT_SETTINGS, beside)
        source += f"; the {PEFT_SETTINGS} beside is of another LoRA, of rank {entries.get('r')}"
    return ScaleSettings(source, OFFICIAL_ALPHA)


def in_header(file: Path, metadata: Mapping[str, str]) -> ScaleSettings | None:
    """The settings that diffusers, this package's trainer or kohya's stored in the file's header; None without any."""
    if ADAPTER_METADATA in metadata:
        entries = parse_json(metadata[ADAPTER_METADATA], file, "its LoRA settings")
        own = {key.removeprefix("transformer."): value for key, value in entries.items()}
        if "lora_alpha" in own:
            return from_peft_settings(checked_entries(own, ADAPTER_CONFIG_FIELDS, file, "its LoRA settings"),
                                    "the file's header", file)
    try:
        alpha = float(metadata.get("ss_network_alpha", ""))
    except ValueError:          # kohya writes "None" where it has none
        return None
    if not math.isfinite(alpha) or abs(alpha) > LARGEST_ALPHA:
        raise CheckpointError(file, f"ss_network_alpha is {alpha} in its header", f"a number up to {LARGEST_ALPHA:g}")
    return ScaleSettings(f"alpha {alpha:g} from the file's header", alpha)


def from_peft_settings(entries: Mapping[str, Any], source: str, path: Path) -> ScaleSettings:
    """From peft's settings, with peft's defaults for what they leave out; LoHa and LoKr call it alpha."""
    alpha = float(entries.get("lora_alpha", entries.get("alpha", OFFICIAL_ALPHA)))
    rslora = bool(entries.get("use_rslora"))
    words = f"alpha {alpha:g}{' over the square root of the rank' if rslora else ''} from {source}"
    return ScaleSettings(words, alpha, rslora, alphas_by_name(entries.get("alpha_pattern") or {}, path))


def alphas_by_name(patterns: Mapping[str, Any], path: Path) -> dict[str, float]:
    """peft's alpha_pattern, regular expressions of module names; only such as match in bounded time."""
    for pattern, alpha in patterns.items():
        bounded = len(pattern) <= 256 and PATTERN.fullmatch(pattern) and pattern.count("*") + pattern.count(
            "+") <= MOST_WILDCARDS
        if not bounded:
            raise CheckpointError(path, f"{pattern[:60]!r} in alpha_pattern does not name modules",
                                  "names such as attn1.to_q, with .* at most three times")
        wanted = number(-LARGEST_ALPHA, LARGEST_ALPHA)(alpha)
        if wanted:
            raise CheckpointError(path, f"alpha_pattern says {str(alpha)[:30]} for {pattern[:60]}", f"{wanted} there")
    return {pattern: float(alpha) for pattern, alpha in patterns.items()}
