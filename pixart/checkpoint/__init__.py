"""Reading and writing of checkpoints in every published layout."""
from ..weights.errors import CheckpointError, CheckpointNotFound
from .control import ControlCheckpoint, load_control, read_control, save_control
from .layouts import expected_shapes, reference_module, to_diffusers, to_reference
from .load import Checkpoint, OpenCheckpoint, load, open_checkpoint, read_checkpoint, read_config
from .save import reference_state_dict, save_checkpoint

__all__ = ["Checkpoint", "CheckpointError", "CheckpointNotFound", "ControlCheckpoint", "OpenCheckpoint",
           "expected_shapes", "load", "load_control", "open_checkpoint", "read_checkpoint", "read_config",
           "read_control", "reference_module", "reference_state_dict", "save_checkpoint", "save_control",
           "to_diffusers", "to_reference"]
