"""What a regression compares when it is to see images: two latents, decoded, as a network reads the images."""
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import PixArtConfig
from ..mini import SHIPPED
from ..vae import decoder, load_vae
from .lpips import load_lpips
from .vae_file import vae_file


class ImageDistance(nn.Module):
    """Latents a and b (B, C, h, w), scaled as the transformer sees them -> distances of their images (B,)."""

    def __init__(self, vae: nn.Module, latent_scale: float, eye: nn.Module,
                 distance: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        """distance: what `eye` finds of two batches of images (B, 3, H, W) in 0..1."""
        super().__init__()
        self.vae, self.eye, self.distance = vae, eye, distance
        self.decode = decoder(vae, latent_scale)        # type: ignore[arg-type]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.decode(b)
        return self.distance(self.eye, self.decode(a), wanted)


def image_distance(seen: str, lpips: Path | None, vae: Path | None, config: PixArtConfig) -> ImageDistance | None:
    """What `method.regression_on` asks for; None for latents. ValueError for parts that are missing or do not fit."""
    if seen == "latents":
        return None
    file = vae_file(vae, config, f"regression_on is {seen}", "method.vae")
    eye, distance = judge_eye() if seen == "judge" else lpips_eye(lpips)
    return ImageDistance(load_vae(file), config.latent_scale, eye, distance)


def lpips_eye(folder: Path | None) -> tuple[nn.Module, Callable[[nn.Module, Tensor, Tensor], Tensor]]:
    if folder is None:
        raise ValueError("regression_on is lpips: method.lpips is needed, the folder with its two files, "
                         "vgg16-397923af.pth and vgg.pth")
    return load_lpips(folder), lambda eye, a, b: eye(2 * a - 1, 2 * b - 1)


def judge_eye() -> tuple[nn.Module, Callable[[nn.Module, Tensor, Tensor], Tensor]]:
    """Judge A of PixArt-mini, which may teach."""
    from ..mini.judge import load_judge
    from ..mini.measure.similarity import map_distance

    def distance(eye: Any, a: Tensor, b: Tensor) -> Tensor:
        return map_distance(eye.maps(a), eye.maps(b))
    return load_judge(SHIPPED.judge_a).eval().requires_grad_(False), distance
