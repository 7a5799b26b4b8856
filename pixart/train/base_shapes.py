"""Which dimensions of a PixArt's weights are widths, as base-shape files (.bsh) of the `mup` package say it.

Such a file is YAML: parameter name -> its shape in the base model, `null` where a dimension has nothing to do with
width. Names are those of the weight files. For a PixArt of given depth all of it follows from one number, the base
width, so reading a file means finding that number and checking the rest against it.
"""
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..atomic import replacing
from ..checkpoint.layouts import NULL_CAPTION, expected_shapes
from ..config import PixArtConfig

BaseShapes = dict[str, list[int | None]]
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

    Raises ValueError when the file is none, or is of a model of other depth or conditioning.
    """
    import yaml

    path = Path(path)
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a base-shape file ({str(error).splitlines()[0]})") from error
    width = found.get("x_embedder.proj.bias", [None])[0] if isinstance(found, Mapping) else None
    if not isinstance(width, int):
        raise ValueError(f"{path}: it does not say the base width of a PixArt; expected x_embedder.proj.bias with one "
                         "number. Write one with pixart.train.base_shapes.write_base_shapes.")
    expected = base_shapes(config, width)
    differing = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if differing:
        name = differing[0]
        raise ValueError(f"{path}: {len(differing)} entries do not fit this model of {config.depth} blocks, the first "
                         f"is {name} with {found.get(name)} instead of {expected.get(name)}. Use the file of a model "
                         "with the same depth and conditioning.")
    return width
