"""Names that users give to files on a node."""
import re


def checked_name(name: str) -> str:
    """The name. Raises ValueError for one that could lead out of a folder or that some system does not take."""
    if not re.fullmatch(r"\w[\w .+-]*", name):
        raise ValueError(f"{name!r} cannot be the name of a file; use letters, digits, spaces and . + - _")
    return name
