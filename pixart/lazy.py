"""Names of a package that are loaded when they are first touched."""
import importlib
from collections.abc import Mapping


def lazy_attribute(package: str, places: Mapping[str, str], name: str) -> object:
    """For a package's `__getattr__`: the name out of its module, given relative to the package."""
    if name not in places:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{places[name]}", package), name)
