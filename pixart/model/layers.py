"""The layers a network is built of, as an argument: torch.nn, or a host's own that it can move, cast and patch."""
from typing import Any, Protocol


class Ops(Protocol):
    """What `ops` must offer: torch.nn does, and so do the layer classes of ComfyUI."""

    @property
    def Linear(self) -> Any:
        """As torch.nn.Linear."""

    @property
    def Conv2d(self) -> Any:
        """As torch.nn.Conv2d."""

    @property
    def LayerNorm(self) -> Any:
        """As torch.nn.LayerNorm."""
