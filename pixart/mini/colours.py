"""What a latent of PixArt-mini looks like without decoding it: the colours of live previews.

Its autoencoder is its own, so the factors known for Stable Diffusion's latents show wrong colours.
"""
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from .autoencoder import MiniAutoencoder

# Red, green and blue in -1..1 of each latent channel, and for a latent of zeros; of the shipped autoencoder.
LATENT_RGB = ((-0.401, -0.352, -0.216), (0.041, 0.222, 0.339), (0.039, 0.001, -0.013), (-0.341, -0.223, -0.162))
LATENT_RGB_BIAS = (-0.056, -0.093, -0.045)


@torch.no_grad()
def fit_colours(vae: "MiniAutoencoder", images: Tensor) -> tuple[Tensor, Tensor]:
    """Factors (4, 3) and bias (3,) that best turn raw latents of images (B, 3, H, W) into their mean colours."""
    latents = vae.encode(images).permute(0, 2, 3, 1).flatten(0, 2)
    wanted = (2 * F.avg_pool2d(images, 8) - 1).permute(0, 2, 3, 1).flatten(0, 2)
    ones = torch.ones(len(latents), 1)
    found = torch.linalg.lstsq(torch.cat([latents, ones], 1), wanted).solution
    return found[:-1], found[-1]
