"""Where a stage runs, how large everything is there, and how much time it has."""
import gc
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pixart.config import VARIANTS, PixArtConfig

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
DTYPES = {"fp32": torch.float32, **HALF}
TINY: dict[str, Any] = {"depth": 3, "hidden": 48, "heads": 4, "caption_width": 64}
SHRINK = 16                     # images of a rehearsal are that much smaller
HEAD = 72                       # width of a head of the published models


class Absent(Exception):
    """Something a case needs is not on this machine; says what."""


@dataclass(frozen=True)
class Setting:
    """The setting of one stage. `work` is shared by all stages: weights written by one are found there by the next."""

    device: str                 # "cuda", or "cpu" for a rehearsal
    tiny: bool
    work: Path
    until: float                # time.monotonic() at which the stage is stopped
    rounds: int | None = None   # of a timing after one that warms up; None: as many as its time allows
    depth: int | None = None    # blocks of the networks, None: all
    width: int | None = None    # of the networks, a multiple of 72, None: that of the published ones

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    def left(self) -> float:
        """Seconds."""
        return self.until - time.monotonic()

    def pixels(self, side: int) -> int:
        """The side of an image that stands for one of `side` pixels, smaller in a rehearsal."""
        return side // SHRINK if self.tiny else side

    def config(self, variant: str = "alpha-1024", **changes: Any) -> PixArtConfig:
        sizes: dict[str, Any] = dict(TINY) if self.tiny else {}
        sizes |= {"depth": self.depth} if self.depth else {}
        sizes |= {"hidden": self.width, "heads": self.width // HEAD} if self.width else {}
        return replace(VARIANTS[variant], **{**sizes, **changes})

    def tidy(self) -> None:
        """Free the memory that the last case left."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def host(self) -> Path:
        """The ComfyUI folder. Raises Absent."""
        path = Path(os.environ.get("COMFYUI_PATH", "").split(os.pathsep)[0] or "/nowhere").expanduser()
        if not (path / "main.py").is_file():
            raise Absent("no ComfyUI at $COMFYUI_PATH")
        return path


def need(package: str) -> None:
    """Raises Absent when a package cannot be imported, with the reason."""
    import importlib
    try:
        importlib.import_module(package)
    except (ImportError, RuntimeError, OSError) as error:
        raise Absent(f"{package} is not usable here ({str(error).splitlines()[0][:120]})") from error
