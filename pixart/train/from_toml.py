"""From the tables of a TOML file, every field of which an option may replace, to dataclasses.

A wrong value is one error that names the file (or the option), the key, what was found and what was expected.
"""
import math
import os
import re
import sys
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..weights.settings import short, shown

LARGEST_TOML = 1 << 20           # bytes of a configuration
MOST_NUMBER = 1 << 63              # what numbers are below
KEY_PART = r"""(?:[\w-]+|"[^"\n]*"|'[^'\n]*')"""
DEEP_KEY = re.compile(rf"^[ \t\[]*{KEY_PART}(?:[ \t]*\.[ \t]*{KEY_PART}){{64}}", re.MULTILINE)   # of over 64 parts
UNBOUNDED = "clip"          # end of the names of fields in which inf means "not cut"


class Source:
    """The tables of a file, and what the command line puts in their place."""

    def __init__(self, file: Path | None, replaced: Mapping[str, str]) -> None:
        """replaced: "section.field" -> a TOML value, or a text without quotes."""
        self.file, self.values = file, read_toml(file) if file is not None else {}
        self.replaced = dict(replaced)
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


def parse_toml(written: str) -> dict[str, Any]:
    """By Python's own reader, which came with 3.11."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(written)


def read_toml(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"there is no configuration file {file}")
    if file.stat().st_size > LARGEST_TOML:
        raise ValueError(f"a configuration file of {file.stat().st_size} bytes; expected at most {LARGEST_TOML}: "
                         f"{file}")
    try:
        written = file.read_text(encoding="utf-8-sig")
        if DEEP_KEY.search(written):
            raise RecursionError            # which tomllib takes minutes for instead
        return parse_toml(written)
    except RecursionError:
        raise ValueError(f"this is no configuration, it is nested too deeply: {file}") from None
    except ValueError as error:                 # of TOML, of UTF-8, of numbers without end
        raise ValueError(f"this is not a TOML file ({short(error)}): {file}") from error


def toml_value(text: str) -> Any:
    """`3` -> 3, `[1, 2]` -> a list, `bf16` -> the text itself."""
    try:
        return parse_toml(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def build_settings(kind: type, table: object, key: str, source: Source,
                   chosen: Mapping[str, type] | None = None) -> Any:
    """A dataclass from a table; `chosen` says the type of a field where the class leaves it open."""
    if not isinstance(table, Mapping):
        raise ValueError(f"{source.place(key)} is {table!r}; expected a table [{key}]")
    hints = {**get_type_hints(kind), **(chosen or {})}
    known = [f.name for f in fields(kind)]
    for name in table:
        if name not in known:
            raise ValueError(f"{source.place(dotted_key(key, name))} is unknown; known are {', '.join(known)}")
    values = {}
    for f in fields(kind):
        here = dotted_key(key, f.name)
        open_table = is_dataclass(hints[f.name]) and f.default is MISSING
        if f.name in table or open_table:
            values[f.name] = convert_value(table.get(f.name, {}), hints[f.name], here, source)
        elif f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"{source.place(here)} is missing; give it there or as --set {here}=...")
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{source.place(key) if key else source.file or 'command line'}: {error}") from error


def convert_value(value: Any, kind: Any, key: str, source: Source) -> Any:
    """A TOML value as the type a field has."""
    if isinstance(kind, type) and is_dataclass(kind):
        return build_settings(kind, value, key, source)
    if get_origin(kind) in (Union, types.UnionType):
        return convert_value(value, next(part for part in get_args(kind) if part is not type(None)), key, source)
    if get_origin(kind) is tuple:
        return convert_tuple(value, get_args(kind), key, source)
    if kind in (Path, str) and not isinstance(value, str) and toml_value(source.replaced.get(key, "")) == value:
        value = source.replaced[key]                # a folder named 7 or 2026-11-28
    if kind is Path and isinstance(value, str):
        return source.folder(key) / os.path.expanduser(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < MOST_NUMBER:
        value = float(value)
    wrong = not isinstance(value, kind) or (kind is not bool and isinstance(value, bool))
    endless = kind is float and not wrong and not math.isfinite(value) and not (value > 0 and key.endswith(UNBOUNDED))
    if wrong or endless or (kind is int and abs(value) >= MOST_NUMBER):
        raise ValueError(f"{source.place(key)} is {shown(value)}; expected {TYPE_NAMES[kind]}")
    return value


def convert_tuple(value: Any, kinds: tuple[Any, ...], key: str, source: Source) -> tuple[Any, ...]:
    if not isinstance(value, list) or (kinds[-1] is not Ellipsis and len(value) != len(kinds)):
        count = "" if kinds[-1] is Ellipsis else f"{len(kinds)} "
        raise ValueError(f"{source.place(key)} is {value!r}; expected a list of {count}values")
    kinds = (kinds[0],) * len(value) if kinds[-1] is Ellipsis else kinds
    return tuple(convert_value(part, kind, key, source) for part, kind in zip(value, kinds))


TYPE_NAMES = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false", Path: "a path"}


def dotted_key(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
