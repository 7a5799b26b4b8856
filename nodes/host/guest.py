"""Sharing the host's process: ids that other packs have, long work that stops when the user says so."""
import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..arguments import PACK

logger = logging.getLogger(__name__)


def taken(node_id: str) -> bool:
    """Whether a pack that the host imported before this one has a node of this id. One imported later wins anyway."""
    host = sys.modules.get("nodes") if "folder_paths" in sys.modules else None
    owner = host.NODE_CLASS_MAPPINGS.get(node_id) if host is not None else None
    module = getattr(owner, "__module__", "")
    if owner is not None and not module.endswith(".nodes.lora"):         # of another copy of this pack
        logger.info("%s is a node of %s, which keeps it; Load PixArt LoRA has the id PixArtDeltaLoraLoader", node_id,
                    module)
    return owner is not None


def refused_as_second_copy() -> bool:
    """Whether the host imported another folder with this pack before: that one keeps the nodes; this is logged once.

    Two copies with the same ids would replace each other's nodes in the order of the file system.
    """
    host = sys.modules.get("nodes") if "folder_paths" in sys.modules else None
    first = getattr(host, "NODE_CLASS_MAPPINGS", {}).get("PixArtLoader")
    module = sys.modules.get(getattr(first, "__module__", ""))
    if module is None or module.__file__ is None or module.__name__ == f"{PACK}.nodes.loaders":
        return False
    there, here = Path(os.path.abspath(module.__file__)).parents[1], Path(os.path.abspath(__file__)).parents[2]
    if there == here:
        return False
    logger.warning("ComfyUI-PixArt-Delta is installed twice. The nodes of %s are used; remove this folder: %s", there,
                   here)
    return True


def bar(total: int) -> Any:
    from comfy.utils import ProgressBar
    return ProgressBar(total)


def advance_bar(bar: Any, done: int, total: int, preview: tuple | None = None) -> bool:
    """Move a bar on the node; whether the user wants to stop. preview: ("JPEG", image, most pixels a side)."""
    from comfy import model_management
    try:
        bar.update_absolute(done, total, preview)
    except model_management.InterruptProcessingException:       # older hosts check for it here, and clear the flag
        return True
    return model_management.processing_interrupted()


def progress_on_node(total: int) -> Callable[[int, int], None]:
    """Shows how many of `total` are done, and stops with the host's own exception when the user does."""
    from comfy import model_management
    shown = bar(total)

    def progress(done: int, _: int) -> None:
        model_management.throw_exception_if_processing_interrupted()
        shown.update_absolute(done, total)
    return progress


def stop_if_asked() -> None:
    """KeyboardInterrupt, on which `pixart` keeps what is done, when the user stopped the host."""
    from comfy import model_management
    if model_management.processing_interrupted():
        raise KeyboardInterrupt


@contextmanager
def stoppable() -> Iterator[None]:
    """KeyboardInterrupt becomes the host's own exception, and its flag is cleared."""
    from comfy import model_management
    try:
        yield
    except KeyboardInterrupt:
        model_management.throw_exception_if_processing_interrupted()
        raise model_management.InterruptProcessingException from None


def make_room(device: torch.device) -> None:
    """Ask the host to take its models off the GPU; it brings them back when they are needed."""
    from comfy import model_management
    if device.type != "cpu":
        model_management.free_memory(model_management.get_total_memory(device), device)


@contextmanager
def memory_handed_back() -> Iterator[None]:
    """At the end nothing of the work stays in memory, however it ended."""
    from comfy import model_management
    try:
        yield
    finally:
        forget_devices()
        gc.collect()
        model_management.soft_empty_cache()


def forget_devices() -> None:
    """accelerate remembers device and precision for the whole process, which is the host's, not ours."""
    if (used := sys.modules.get("accelerate.state")) is not None:
        used.AcceleratorState._reset_state(reset_partial_state=True)
