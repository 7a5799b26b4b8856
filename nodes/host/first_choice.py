"""Which of the listed files a new node begins with: PixArt's own, whatever else lies in the host's folders."""
import re
from collections.abc import Sequence

from . import folders

MINI = "pixart-mini/"


def first_model() -> str:
    """A checkpoint with PixArt in its name; the user's before the bundled ones, which come last in the list."""
    names = folders.model_files()
    named = [name for name in names if "pixart" in name.lower() and "control" not in name.lower()]
    return (named or names)[0]


def begins_with_mini() -> bool:
    """Whether the first model is a bundled one, as on a fresh install and beside models of other families."""
    return first_model().startswith(MINI)


def first_text_encoder() -> str:
    """T5, neither mT5 nor CLIP."""
    return beside_model(folders.text_encoders(), r"(?<![a-z])t5")


def first_control() -> str:
    return beside_model(folders.control_files(), "pixart")


def first_lora() -> str:
    return beside_model(folders.lora_files(), "pixart|lcm")


def beside_model(names: Sequence[str], pattern: str) -> str:
    """The first name that has the pattern in it, a bundled one where the model is bundled and else one of the user's;
    the first of all where none fits."""
    fitting = [name for name in names if re.search(pattern, name, re.IGNORECASE)] or names
    mini = begins_with_mini()
    return next((name for name in fitting if name.startswith(MINI) == mini), fitting[0])
