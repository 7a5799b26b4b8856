"""From the tables of a TOML file, every field of which an option may replace, to dataclasses.

A wrong value is one error that names the file (or the option), the key, what was found and what was expected.
"""
import os
import sys
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints


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
    if kind is Path and isinstance(value, str):
        return source.folder(key) / os.path.expanduser(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise ValueError(f"{source.place(key)} is {value!r}; expected {TYPE_NAMES[kind]}")
    return value


def convert_tuple(value: Any, kinds: tuple[Any, ...], key: str, source: Source) -> tuple[Any, ...]:
    if not isinstance(value, list) or (kinds[-1] is not Ellipsis and len(value) != len(kinds)):
        count = "" if kinds[-1] is Ellipsis else f"{len(kinds)} "
        raise ValueError(f"{source.place(key)} is {value!r}; expected a list of {count}values")
    kinds = (kinds[0],) * len(value) if kinds[-1] is Ellipsis else kinds
    return tuple(convert_value(part, kind, key, source) for part, kind in zip(value, kinds))


TYPE_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", Path: "a path"}


def dotted_key(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
