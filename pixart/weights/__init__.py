"""Weight files of any network: located, checked, and opened without running anything in them."""
from .errors import CheckpointError, CheckpointNotFound
from .locate import WEIGHT_SUFFIXES, Kind, find_files
from .reader import ShortLived, Weights, open_files, open_weights
from .settings import checked_entries, parse_json, read_json
from .values import check_finite, check_floating

__all__ = ["WEIGHT_SUFFIXES", "CheckpointError", "CheckpointNotFound", "Kind", "ShortLived", "Weights", "check_finite",
           "check_floating", "checked_entries", "find_files", "open_files", "open_weights", "parse_json", "read_json"]
