"""Inner loop feedback on a MODEL of the host."""
from pathlib import Path
from typing import Any

from ...pixart.checkpoint.feedback import load_feedback
from ...pixart.model.feedback import PlacedInnerLoop
from .policies import with_policies
from .transformer import network_in


def apply_feedback(model: Any, path: Path, start: float, end: float) -> tuple[Any, str]:
    """A clone with feedback in the steps from share `start` to share `end`, and one line about it.

    Raises ValueError for a MODEL that is no PixArt of this pack or has other blocks, CheckpointError for the file.
    """
    feedback = load_feedback(path)
    network = network_in(model.model)
    if network is not None:
        feedback.check(network.config)
    patched = with_policies(model, lambda sampling: [PlacedInnerLoop(feedback, start, end)])
    blocks = len(feedback.blocks)
    return patched, (f"feedback: blocks {feedback.first} to {feedback.last} run twice, {blocks + 1} more than "
                     f"{feedback.config.depth} a step; trained for {feedback.steps} steps with euler, scheduler "
                     "sgm_uniform")
