"""PixArt-mini: procedural images, their captions, and the small networks that are trained on them."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..config import PixArtConfig
    from ..pt_dit.config import PTDiTConfig

CAPTION_WIDTH = 128            # of its text features, by which its transformers are known


@dataclass(frozen=True)
class Files:
    """The files of PixArt-mini below one folder, which is laid out like the host's model folders.

    A host that adds this folder to its own lists them as `pixart-mini/...`.
    """

    root: Path = Path(__file__).parent / "weights"

    @property
    def teacher(self) -> Path:
        return self.root / "diffusion_models" / "pixart-mini" / "teacher.safetensors"

    @property
    def student(self) -> Path:
        return self.root / "diffusion_models" / "pixart-mini" / "lcm.safetensors"

    @property
    def tdm(self) -> Path:
        """Four-step student of the teacher by trajectory distribution matching, a LoRA."""
        return self.root / "loras" / "pixart-mini" / "tdm.safetensors"

    @property
    def dmd(self) -> Path:
        """One-step student of the teacher by distribution matching, a LoRA."""
        return self.root / "loras" / "pixart-mini" / "dmd.safetensors"

    @property
    def control(self) -> Path:
        return self.root / "controlnet" / "pixart-mini" / "edges.safetensors"

    @property
    def vae(self) -> Path:
        return self.root / "vae" / "pixart-mini" / "vae.safetensors"

    @property
    def t5(self) -> Path:
        return self.root / "text_encoders" / "pixart-mini" / "t5"

    @property
    def judge(self) -> Path:
        """Judge B, only for measuring: not in any of the host's lists."""
        return self.root / "judge.safetensors"

    @property
    def judge_a(self) -> Path:
        """Judge A, which may teach: a reward, or features to align with. Never the one that measures."""
        return self.root / "judge-a.safetensors"


SHIPPED = Files()


def is_mini(config: PixArtConfig | PTDiTConfig) -> bool:
    """Whether a transformer is one of PixArt-mini's, with its own text encoder and autoencoder."""
    return config.caption_width == CAPTION_WIDTH


def shipped_for(config: PixArtConfig | PTDiTConfig) -> Files | None:
    """The files that come with the package and fit a transformer: PixArt-mini's, or none."""
    return SHIPPED if is_mini(config) else None
