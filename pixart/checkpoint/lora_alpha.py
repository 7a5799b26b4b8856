"""The scale of a LoRA, alpha / rank: where alpha is written down, and what holds where it is not."""
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .errors import CheckpointError

LORA_FILE = "a LoRA of a PixArt transformer (.safetensors, or a folder with adapter_config.json)"
ADAPTER_METADATA = "lora_adapter_metadata"      # header entry where diffusers keeps the settings of peft
PEFT_SETTINGS = "adapter_config.json"
OFFICIAL_ALPHA = 8.0        # peft's default, which the official trainers never change and often do not write down


@dataclass(frozen=True)
class Settings:
    """What is said about the scale outside of the tensors, in peft's words."""

    source: str                              # for people, such as "alpha 8 from adapter_config.json"
    alpha: float | None = None               # None: the rank
    rslora: bool = False
    alphas: Mapping[str, float] = field(default_factory=dict)       # for modules whose name ends so

    def scale(self, module: str, rank: int) -> float:
        """Of a diffusers module, "transformer_blocks.0.attn1.to_q"."""
        alpha = next((alpha for end, alpha in self.alphas.items() if re.match(rf"(.*\.)?({end})$", module)), self.alpha)
        return 1.0 if alpha is None else alpha / (rank ** 0.5 if self.rslora else rank)


def find_settings(file: Path, by_peft: bool, metadata: Mapping[str, str], rank: int) -> Settings:
    """What is known of alpha where the tensors do not tell, from the most trustworthy source.

    by_peft: whether the keys are named as peft names them. metadata: the file's header. rank: of the file's tensors.
    """
    header = in_header(file, metadata)
    if header is not None:
        return header
    if not by_peft:
        return Settings("alpha not said, taken as the rank")
    text = f"alpha {OFFICIAL_ALPHA:g} assumed, as the official trainers have it"
    beside = file.with_name(PEFT_SETTINGS)
    if beside.is_file():
        said = parse(beside.read_text(encoding="utf-8"), beside)
        if said.get("r") == rank:
            return in_words_of_peft(said, PEFT_SETTINGS)
        text += f"; the {PEFT_SETTINGS} beside is of another LoRA, of rank {said.get('r')}"
    return Settings(text, OFFICIAL_ALPHA)


def in_header(file: Path, metadata: Mapping[str, str]) -> Settings | None:
    """What diffusers, our own trainer or kohya's left in the file's header."""
    if ADAPTER_METADATA in metadata:
        said = parse(metadata[ADAPTER_METADATA], file)
        own = {key.removeprefix("transformer."): value for key, value in said.items()}
        if "lora_alpha" in own:
            return in_words_of_peft(own, "the file's header")
    try:
        alpha = float(metadata.get("ss_network_alpha", ""))
    except ValueError:          # kohya writes "None" where it has none
        return None
    return Settings(f"alpha {alpha:g} from the file's header", alpha)


def parse(text: str, path: Path) -> dict:
    try:
        said = json.loads(text)
    except ValueError as error:
        raise CheckpointError(path, f"its LoRA settings are not readable as JSON ({error})", LORA_FILE) from error
    if not isinstance(said, dict):
        raise CheckpointError(path, f"its LoRA settings are a {type(said).__name__}, not a table", LORA_FILE)
    return said


def in_words_of_peft(said: Mapping[str, object], source: str) -> Settings:
    """peft's settings, with its own defaults where they leave something out."""
    alpha, rslora = float(said.get("lora_alpha", OFFICIAL_ALPHA)), bool(said.get("use_rslora"))
    text = f"alpha {alpha:g}{' over the square root of the rank' if rslora else ''} from {source}"
    return Settings(text, alpha, rslora, dict(said.get("alpha_pattern") or {}))
