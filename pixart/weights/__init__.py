"""Files of weights, whatever network they are of: found, opened without running anything in them, checked."""
from .errors import CheckpointError, CheckpointNotFound
from .locate import SUFFIXES, Kind, find_files
from .reader import ShortLived, Weights, open_files, open_weights
from .settings import checked, parse_json, read_json
from .values import check_finite, check_floating

__all__ = ["SUFFIXES", "CheckpointError", "CheckpointNotFound", "Kind", "ShortLived", "Weights", "check_finite",
           "check_floating", "checked", "find_files", "open_files", "open_weights", "parse_json", "read_json"]
