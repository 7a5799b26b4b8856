"""What preparing asks of a text encoder and an autoencoder, whoever brings them; those of files."""
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ..text.encoded import Encoded
from .families import Family
from .state import fingerprint


class TextEncoder(Protocol):
    """`pixart.text.t5.T5Encoder` is one."""

    def encode(self, prompts: list[str], max_tokens: int, clean: bool, batch: int) -> Encoded: ...

    def close(self) -> None: ...


class PictureEncoder(Protocol):
    """Pictures (B, 3, H, W) in 0..1 to posterior mean and standard deviation (B, C, H/8, W/8) fp16 on the CPU, scaled
    as the family's models want them; no deviation where `tiny`. `pixart.prepare.latents.LatentEncoder` is one."""

    tiny: bool

    def __call__(self, pictures: Tensor) -> tuple[Tensor, Tensor | None]: ...


@dataclass(frozen=True)
class Networks:
    """Each is opened when it is needed first, one after the other; None where there is none."""

    text: Callable[[], TextEncoder] | None
    pictures: Callable[[], PictureEncoder] | None
    facts: Mapping[str, object]         # what tells these from other networks: a folder is prepared with one kind only


def from_files(vae: Path | None, t5: Path | None, bits: int, family: Family, device: str) -> Networks:
    """Networks of a VAE file or folder and a T5 encoder file or folder. FileNotFoundError for what is not there."""
    for path in (vae, t5):
        if path is not None and not path.exists():
            raise FileNotFoundError(f"no file or folder {path}")

    def open_text() -> TextEncoder:
        from ..text.t5 import T5Encoder
        return T5Encoder(t5, bits, device)

    def open_pictures() -> PictureEncoder:
        from .latents import LatentEncoder
        return LatentEncoder(vae, family, device)

    return Networks(open_text if t5 else None, open_pictures if vae else None,
                    {"VAE": fingerprint(vae), "T5": fingerprint(t5), "T5 bits": bits if t5 else None})
