"""What decides the course of a training, as plain values by name: kept with the state, compared when it goes on."""
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from .loop_config import LoopConfig

# Fields that may change between a run and the one that goes on from it.
FREE = ("steps", "save_every", "log_every", "accumulation", "recompute", "compile", "threads")
LATER = ("base",)                # facts that states of older versions do not have
PLAIN_TYPES = (int, float, str, tuple)


def training_fingerprint(config: LoopConfig, objective: object, total: int) -> dict[str, object]:
    """Of a training whose steps take `total` images, all processes together."""
    facts = {name: value for name, value in plain_fields(config) if name not in FREE}
    facts["batch"] = total
    if is_dataclass(objective):
        facts["objective"] = type(objective).__name__
        facts |= dict(plain_fields(objective))
    return facts


def usual(config: LoopConfig, objective: object, now: Mapping[str, object]) -> dict[str, object]:
    """What the same facts are by default: a state from before an option existed was made with its default.

    now: the facts of the training at hand. What older versions did not write down is taken to be the same.
    """
    facts = {**dict(plain_defaults(config)), **dict(plain_defaults(objective))}
    unsaid = {name: now[name] for name in LATER if name in now}
    return {**{name: value for name, value in facts.items() if name not in FREE}, **unsaid}


def plain_fields(settings: Any, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Numbers, texts and tuples of a dataclass, those of dataclasses inside as "outer.inner"."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_settings(value):
            yield from plain_fields(value, f"{prefix}{field.name}.")
        elif isinstance(value, PLAIN_TYPES):
            yield prefix + field.name, value


def plain_defaults(settings: Any) -> Iterator[tuple[str, object]]:
    for field in fields(settings) if is_dataclass(settings) else ():
        if is_settings(field.default):
            yield from plain_fields(field.default, f"{field.name}.")
        elif field.default is not MISSING:
            yield field.name, field.default


def is_settings(value: Any) -> bool:
    """A frozen dataclass, not the class itself: data and networks are something else."""
    return is_dataclass(value) and not isinstance(value, type) and vars(type(value))["__dataclass_params__"].frozen
