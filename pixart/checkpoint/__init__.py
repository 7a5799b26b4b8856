"""Reading and writing of checkpoints in every published layout."""
from .errors import CheckpointError, CheckpointNotFound
from .layouts import expected_shapes, reference_module, to_diffusers, to_reference
from .load import Checkpoint, load, read_checkpoint, read_config
from .save import reference_state_dict, save_checkpoint

__all__ = ["Checkpoint", "CheckpointError", "CheckpointNotFound", "expected_shapes", "load", "read_checkpoint", "read_config",
           "reference_module", "reference_state_dict", "save_checkpoint", "to_diffusers", "to_reference"]
