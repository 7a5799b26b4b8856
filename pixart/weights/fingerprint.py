"""A fingerprint of weights without reading them whole."""
import hashlib
from pathlib import Path

from .locate import WEIGHT_SUFFIXES


def weights_fingerprint(path: Path | None) -> str | None:
    """Name and short digest of weights, from the sizes and ends of their files; the same wherever they lie."""
    if path is None:
        return None
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in WEIGHT_SUFFIXES)
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        with file.open("rb") as opened:
            digest.update(f"{size} ".encode() + opened.read(65536))
            opened.seek(max(0, size - 65536))
            digest.update(opened.read())
    return f"{path.name} ({digest.hexdigest()[:12]})"
