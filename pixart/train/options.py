"""Every single thing a dataclass of settings can be told, with its meaning and default."""
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import NamedTuple

from .from_toml import dotted_key
from .meanings import meanings


class Option(NamedTuple):
    """One thing a training can be told."""

    key: str                  # "section.field"
    meaning: str              # one line; empty where sources are missing
    default: str              # as it would stand in a file, "none", or "required"

    @property
    def help(self) -> str:
        default = self.default if self.default == "required" else f"default: {self.default}"
        return f"{self.meaning} ({default})".strip()


def setting_options(kind: type, key: str) -> Iterator[Option]:
    """Those of one table, and of the tables inside it."""
    told = meanings(kind)
    for f in fields(kind):
        here = dotted_key(key, f.name)
        if is_dataclass(f.default):
            yield from setting_options(type(f.default), here)
            continue
        needed = f.default is MISSING and f.default_factory is MISSING
        yield Option(here, told.get(f.name, ""), "required" if needed else default_text(f.default))


def default_text(value: object) -> str:
    """A default as it would stand in a file; nothing where there is none."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str(list(value))
    return "none" if value is None else str(value)
