"""The segments and the density of a FlexDiT, as files store them."""
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ..config import PixArtConfig
from ..model.flexdit_config import Density, FlexDiTConfig, Segments, plain
from ..weights.errors import CheckpointError
from ..weights.settings import Check, checked_entries, number, whole

FLEXDIT_KEY = "flexdit"             # of the table in the configuration that this package's files carry
FLEXDIT_MARK = ".from_dense.weight"     # ends a name that no other network has
FLEXDIT_VERSION = 1
FLEXDIT_FIELDS: dict[str, Check] = {
    "version": whole(1, 1 << 30), **dict.fromkeys((entry.name for entry in fields(Segments)), whole(0, 1000)),
    "r_min": number(0, 1), "r_max": number(0, 1), "pieces": whole(0, 1000),
}


def config_entries(config: PixArtConfig) -> dict[str, Any]:
    """The configuration as JSON entries: the fields of every PixArt, and for a FlexDiT a table of its own."""
    entries = {name: value for name, value in asdict(config).items() if name in plain(config)}
    if isinstance(config, FlexDiTConfig):
        entries[FLEXDIT_KEY] = {"version": FLEXDIT_VERSION, **asdict(config.segments), **asdict(config.density)}
    return entries


def flexdit_config(entries: object, known: Mapping[str, Any], path: Path, where: str) -> FlexDiTConfig:
    """From the table of `config_entries` and the other known fields. Raises CheckpointError or ValueError."""
    where = f"{FLEXDIT_KEY} of {where}"
    if not isinstance(entries, dict):
        raise CheckpointError(path, f"{where} is a {type(entries).__name__}", "a table")
    version = entries.get("version")
    if isinstance(version, int) and version > FLEXDIT_VERSION:
        raise CheckpointError(path, f"a FlexDiT of version {version}, newer than {FLEXDIT_VERSION}",
                              "one of this version", "Update this extension.")
    checked = checked_entries(entries, FLEXDIT_FIELDS, path, where)
    lacking = FLEXDIT_FIELDS.keys() - checked.keys()
    if lacking:
        raise CheckpointError(path, f"{where} does not say {min(lacking)}", "a whole table")
    segments, density = ({entry.name: checked[entry.name] for entry in fields(kind)} for kind in (Segments, Density))
    return FlexDiTConfig(**known, segments=Segments(**segments), density=Density(**density))
