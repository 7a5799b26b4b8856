"""Which dimensions of a PixArt's weights are widths, as base-shape files (.bsh) of the `mup` package say it.

Such a file is YAML: parameter name -> its shape in the base model, `null` where a dimension has nothing to do with
width. Names are those of the weight files. For a PixArt of given depth all of it follows from one number, the base
width, so reading a file means finding that number and checking the rest against it.
"""
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..checkpoint.layouts import NULL_CAPTION, expected_shapes
from ..config import PixArtConfig
from ..files.atomic import replacing
from ..weights.settings import short, shown, whole

BaseShapes = dict[str, list[int | None]]
LARGEST_BASE_SHAPES = 1 << 18               # bytes of a file; of 42 blocks it has 60,000
DEEPEST_LIST = 8                     # lists in lists
BRACKET = re.compile(r"[\[\]{}]")
NESTED = re.compile(r"^ *(?:- ){8}", re.MULTILINE)
BASE_WIDTH_CHECK = whole(1, 1 << 16)
BASE_SHAPES_HEADER = "# Base shapes for muP: per dimension the width in the base model, null where it is no width\n"


def base_shapes(config: PixArtConfig, base_width: int) -> BaseShapes:
    """Shapes of the trained tensors at `base_width`, None for dimensions that do not grow with the width.

    Only the widths of `config` are replaced; depth and conditioning stay. Raises ValueError for a width that no such
    model can have.
    """
    narrow = expected_shapes(replace(config, hidden=base_width, heads=1))
    wide = expected_shapes(replace(config, hidden=2 * base_width, heads=1))
    return {name: [side if side != other else None for side, other in zip(shape, wide[name], strict=True)]
            for name, shape in narrow.items() if name != NULL_CAPTION}


def write_base_shapes(path: str | os.PathLike, config: PixArtConfig, base_width: int) -> Path:
    """Write a base-shape file that `mup.set_base_shapes` reads; returns its path."""
    import yaml

    path = Path(path)
    with replacing(path) as beside:
        beside.write_text(BASE_SHAPES_HEADER + yaml.dump(base_shapes(config, base_width), indent=4), encoding="utf-8")
    return path


def read_base_width(path: str | os.PathLike, config: PixArtConfig) -> int:
    """The base width that a base-shape file states for a model like `config`, of any width.

    Raises ValueError when it is no base-shape file, or that of a model of other depth or conditioning.
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no base-shape file at this place: {path}")
    if path.stat().st_size > LARGEST_BASE_SHAPES:
        raise ValueError(f"a base-shape file of {path.stat().st_size} bytes; expected at most {LARGEST_BASE_SHAPES}: "
                         f"{path}")
    try:
        written = path.read_text(encoding="utf-8")
        if depth_of(written) > DEEPEST_LIST or NESTED.search(written):
            raise RecursionError            # which the YAML reader needs long to find out
        found = yaml.safe_load(written)
    except RecursionError:
        raise ValueError(f"not a base-shape file, it is nested too deeply: {path}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"not a base-shape file ({short(error)}): {path}") from error
    entry = found.get("x_embedder.proj.bias") if isinstance(found, Mapping) else None
    if not isinstance(entry, list) or len(entry) != 1 or BASE_WIDTH_CHECK(entry[0]):
        raise ValueError("it does not say the base width of a PixArt; expected x_embedder.proj.bias with one number. "
                         f"Write one with pixart.train.base_shapes.write_base_shapes. File: {path}")
    return check_base_shapes(found, config, entry[0], path)


def depth_of(written: str) -> int:
    """How deep brackets stand in brackets."""
    depth = deepest = 0
    for found in BRACKET.finditer(written):
        depth += 1 if found[0] in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def check_base_shapes(found: Mapping[str, object], config: PixArtConfig, width: int, path: Path) -> int:
    """The width, where the file's entries are those of a model like `config` at this width; else ValueError."""
    try:
        expected: Mapping[str, object] = base_shapes(config, width)
    except ValueError as error:
        raise ValueError(f"no PixArt has the base width {width} ({error}). File: {path}") from error
    names = found.keys() | expected.keys()
    differing = sorted((name for name in names if found.get(name) != expected.get(name)), key=str)
    if differing:
        name = differing[0]
        raise ValueError(f"{len(differing)} entries do not fit this model of {config.depth} blocks, the first is "
                         f"{str(name)[:80]} with {shape_of(found.get(name))} instead of {expected.get(name)}. Use the "
                         f"file of a model with the same depth and conditioning. File: {path}")
    return width


def shape_of(entry: object) -> str:
    """An entry as a message shows it; what is no short list of numbers may be endless."""
    plain = isinstance(entry, list) and len(entry) <= 8 and all(isinstance(side, (int, type(None))) for side in entry)
    return str(entry) if plain else shown(entry)
