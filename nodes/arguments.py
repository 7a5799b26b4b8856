"""Inputs of a node are checked before it runs, and its errors get short class names.

The host checks the values of widgets, but neither linked inputs nor numbers that are not finite.
"""
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

import torch

PACK = __package__.rpartition(".")[0]
Declared = Mapping[str, tuple]
FILE_INPUTS = ("file", "schedule")      # their names may be spelled differently than in the list


def checked(method: Callable) -> Callable:
    """A node's method whose arguments are what INPUT_TYPES declares, else ValueError naming the input.

    The page shows the full name of an error's class, so those of this pack become the built-in ones they derive from.
    """
    signature = inspect.signature(method)

    @functools.wraps(method)
    def run(self: Any, *arguments: Any, **named: Any) -> Any:
        bound = signature.bind(self, *arguments, **named).arguments
        given = {name: value for name, value in bound.items()
                 if value is not None or signature.parameters[name].default is not None}
        groups = self.INPUT_TYPES()
        check_all({**groups["required"], **groups.get("optional", {})}, given)
        try:
            return method(self, *arguments, **named)
        except Exception as error:
            if not type(error).__module__.startswith(PACK):
                raise
            raise built_in(error)(str(error)) from error
    return run


def built_in(error: Exception) -> type[Exception]:
    return next(base for base in type(error).__mro__ if base.__module__ == "builtins")


def check_all(declared: Declared, given: Mapping[str, Any]) -> None:
    for name, (kind, *options) in declared.items():
        if name in given:
            expected = wrong(name, kind, options[0] if options else {}, given[name])
            if expected:
                raise ValueError(f"{name} is {described(given[name])}; expected {expected}")


def wrong(name: str, kind: str | list, options: Mapping[str, Any], value: Any) -> str:
    """What was expected instead of this value; "" where it is right. Names of files are looked for by their loaders."""
    if name in FILE_INPUTS:
        return "" if isinstance(value, str) else "the name of a file"
    if isinstance(kind, list):
        return "" if value in kind else f"one of {', '.join(map(str, kind))}"
    if kind in NUMBER_TYPES:
        return wrong_number(kind, options, value)
    return "" if WIRES[kind][0](value) else WIRES[kind][1]


def wrong_number(kind: str, options: Mapping[str, Any], value: Any) -> str:
    least, most = options["min"], options["max"]
    of_kind = isinstance(value, NUMBER_TYPES[kind]) and not isinstance(value, bool)
    if of_kind and math.isfinite(value) and least <= value <= most:
        return ""
    return f"a {'whole ' * (kind == 'INT')}number from {least} to {most}"


def described(value: Any) -> str:
    """A value in a few words, for messages."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    if isinstance(value, Real):
        return str(value)[:40]
    if torch.is_tensor(value):
        finite = bool(torch.isfinite(value).all())
        return f"a tensor of shape {tuple(value.shape)}" + ("" if finite else " with values that are not finite")
    return f"a {type(value).__name__}" + (f" of {len(value)} entries" if isinstance(value, (list, dict)) else "")


def has(*names: str) -> Callable[[Any], bool]:
    return lambda value: all(hasattr(value, name) for name in names)


def is_image(value: Any) -> bool:
    return (torch.is_tensor(value) and value.is_floating_point() and value.ndim == 4 and value.shape[-1] in (1, 3, 4)
            and min(value.shape) > 0 and bool(torch.isfinite(value).all()))


def is_latent(value: Any) -> bool:
    samples = value.get("samples") if isinstance(value, dict) else None
    return torch.is_tensor(samples) or hasattr(samples, "is_nested")        # a nested tensor: refused elsewhere


def is_conditioning(value: Any) -> bool:
    def is_entry(entry: Any) -> bool:
        return (isinstance(entry, (list, tuple)) and len(entry) == 2 and torch.is_tensor(entry[0])
                and isinstance(entry[1], dict))
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(map(is_entry, value))


NUMBER_TYPES: dict[str, type] = {"INT": Integral, "FLOAT": Real}
# Type of a wire -> whether a value is one, and what was expected where it is not. By the attributes that nodes use, not
# by class: other packs have classes of their own.
WIRES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "STRING": (lambda value: isinstance(value, str), "a text"),
    "BOOLEAN": (lambda value: isinstance(value, (bool, Integral)), "true or false"),
    "MODEL": (has("model"), "a MODEL, as of Load PixArt"),
    "CLIP": (has("tokenize", "cond_stage_model"), "a CLIP, as of Load T5 for PixArt"),
    "VAE": (has("encode"), "a VAE, as of the stock VAELoader"),
    "CONTROL_NET": (has("get_control"), "a CONTROL_NET, as of Load PixArt ControlNet"),
    "CONDITIONING": (is_conditioning, "a CONDITIONING, as of PixArt Text Encode"),
    "LATENT": (is_latent, "a LATENT, as of PixArt Empty Latent"),
    "IMAGE": (is_image, "an IMAGE: finite numbers of shape (images, height, width, 1 or 3 or 4)"),
}
