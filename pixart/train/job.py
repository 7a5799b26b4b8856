"""What a training is made of, whatever its method: networks, objective, data, and how the result is written."""
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ..config import PixArtConfig
from ..model.controlnet import Controlled, PixArtControlNet
from ..model.transformer import PixArtTransformer
from .alignment import Aligned
from .caption_list import CaptionList
from .data import PreparedFolder
from .loop import Training
from .rivals import Rival, TwoPlayers

Write = Callable[[nn.Module, Path], Path]       # an averaged network, to a file


@dataclass(frozen=True)
class TrainingJob:
    """Everything `train_averages` needs, and what to do with the averaged networks it returns."""

    model: nn.Module
    objective: Any                   # an Objective; with a rival a Game
    data: PreparedFolder | CaptionList
    file: Path                       # for the result
    write: Write
    config: PixArtConfig
    facts: Mapping[str, object]      # settings of the method that must not change when a training goes on
    rival: Rival | None = None       # the second player, where there is one

    @property
    def kind(self) -> Callable[..., Training]:
        """The class of its training."""
        return Training if self.rival is None else partial(TwoPlayers, rival=self.rival)

    def save(self, average: nn.Module, decay: float | None = None) -> Path:
        """Write an averaged network to its place; with `decay`, a further average beside the result."""
        if decay is None:
            return self.write(average, self.file)
        stem = self.file.stem if self.file.suffix == ".safetensors" else self.file.name
        suffix = self.file.suffix if self.file.suffix == ".safetensors" else ""
        return self.write(average, self.file.with_name(f"{stem}-ema-{decay:g}{suffix}"))

    def parts(self, average: Any) -> tuple[PixArtTransformer, PixArtControlNet | None]:
        """What generates images: a transformer, and the ControlNet beside it if that is what is trained."""
        if isinstance(average, Controlled):
            return average.base, average.control
        return (average.network if isinstance(average, Aligned) else average), None
