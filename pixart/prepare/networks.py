"""What preparing asks of a text encoder and an autoencoder, whoever brings them."""
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..text.encoded import Encoded


class TextEncoder(Protocol):
    """`pixart.text.t5.T5Encoder` is one."""

    def encode(self, prompts: list[str], max_tokens: int, clean: bool, batch: int) -> Encoded: ...

    def close(self) -> None: ...


class ImageEncoder(Protocol):
    """Images (B, 3, H, W) in 0..1 to posterior mean and standard deviation (B, C, H/8, W/8) fp16 on the CPU, scaled
    as the family's models want them; no deviation where `tiny`. `pixart.prepare.latents.LatentEncoder` is one."""

    tiny: bool

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]: ...


@dataclass(frozen=True)
class Networks:
    """Each is opened when it is needed first, one after the other; None where there is none."""

    text: Callable[[], TextEncoder] | None
    images: Callable[[], ImageEncoder] | None
    facts: Mapping[str, object]         # what tells these from other networks: a folder is prepared with one kind only
