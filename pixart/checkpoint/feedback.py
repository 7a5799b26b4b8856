"""Files of inner loop feedback: the block and the scales, and in the header what they were trained for."""
import json
import os
from pathlib import Path

import torch

from ..model.feedback import Feedback
from ..weights.errors import CheckpointError
from ..weights.locate import Kind
from ..weights.reader import Weights, open_weights
from ..weights.safetensors_file import write_tensors
from ..weights.settings import Check, checked_entries, parse_json, whole
from .header import config_from_header, to_header
from .layouts import file_name
from .load import gather_tensors, refuse_differences, widened_dtype
from .save import plain_tensor

FEEDBACK_KEY = "pixart_feedback"
FEEDBACK_VERSION = 1
FEEDBACK_FILE = Kind("feedback (ILF), written by python -m pixart train ilf")
FEEDBACK_FIELDS: dict[str, Check] = {"version": whole(1, 1 << 30), "first": whole(0, 1 << 16),
                                     "last": whole(0, 1 << 16), "steps": whole(1, 999)}


def save_feedback(path: str | os.PathLike, feedback: Feedback, dtype: torch.dtype | None = None) -> Path:
    """Write a file that `load_feedback` reads without further settings; complete or not at all."""
    path = Path(path)
    tensors = {file_name(name): plain_tensor(name, tensor, dtype) for name, tensor in feedback.state_dict().items()}
    about = {"version": FEEDBACK_VERSION, "first": feedback.first, "last": feedback.last, "steps": feedback.steps}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, {"format": "pt", FEEDBACK_KEY: json.dumps(about), **to_header(feedback.config)})
    return path


def load_feedback(path: str | os.PathLike, dtype: torch.dtype | None = None,
                  device: torch.device | str = "cpu") -> Feedback:
    """Read what `save_feedback` wrote, in evaluation mode; 8-bit weights become bfloat16 unless dtype is given.

    CheckpointError for anything else, damaged or newer.
    """
    weights = open_weights(path, FEEDBACK_FILE)
    about, config = feedback_facts(weights), config_from_header(weights.metadata, weights.path)
    if config is None:
        raise CheckpointError(weights.path, "its header does not say for which model it is", FEEDBACK_FILE.expected)
    try:
        feedback = Feedback(config, about["first"], about["last"], about["steps"], device="meta")
    except ValueError as error:
        raise CheckpointError(weights.path, str(error), FEEDBACK_FILE.expected) from error
    names = {file_name(name): name for name in feedback.state_dict()}
    expected = {in_file: tuple(feedback.state_dict()[name].shape) for in_file, name in names.items()}
    refuse_differences({name: tuple(tensor.shape) for name, tensor in weights.tensors.items()}, expected,
                       f"feedback for {config.depth} blocks of width {config.hidden}", weights.path)
    plan = {name: (name,) for name in names}
    tensors = gather_tensors(weights, plan, dtype or widened_dtype(weights, plan), torch.device(device),
                             FEEDBACK_FILE.expected)
    feedback.load_state_dict(tensors, strict=True, assign=True)
    return feedback.eval().requires_grad_(False)


def feedback_facts(weights: Weights) -> dict[str, int]:
    """What the header says, checked."""
    if FEEDBACK_KEY not in weights.metadata:
        raise CheckpointError(weights.path, "a file without feedback in it", FEEDBACK_FILE.expected)
    about = parse_json(weights.metadata[FEEDBACK_KEY], weights.path, f"{FEEDBACK_KEY} of its header")
    version = about.get("version")
    if isinstance(version, int) and version > FEEDBACK_VERSION:
        raise CheckpointError(weights.path, f"feedback of version {version}, newer than {FEEDBACK_VERSION}",
                              FEEDBACK_FILE.expected, "Update this extension.")
    known = checked_entries(about, FEEDBACK_FIELDS, weights.path, f"{FEEDBACK_KEY} of its header")
    lacking = FEEDBACK_FIELDS.keys() - known.keys()
    if lacking:
        raise CheckpointError(weights.path, f"{FEEDBACK_KEY} of its header does not say {min(lacking)}",
                              FEEDBACK_FILE.expected)
    return known
