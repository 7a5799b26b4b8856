"""What a user reads when a checkpoint cannot be used; the errors of every reader of weights."""
from ..weights.errors import PIXART_FILE, CheckpointError, CheckpointNotFound

__all__ = ["PIXART_FILE", "CheckpointError", "CheckpointNotFound"]
