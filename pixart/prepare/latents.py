"""Images to latents and to latents of their edge maps, as the transformer sees them."""
from pathlib import Path

import torch
from torch import Tensor

from ..device import is_out_of_memory
from .captions import half
from .families import Family

PREPARED_EDGES = ("none", "canny", "soft", "hed")


class LatentEncoder:
    """An autoencoder of diffusers: images (B, 3, H, W) in 0..1 to posterior mean and standard deviation, fp16.

    Both are scaled as the family's models want them. A tiny autoencoder (TAESD) gives scaled latents without spread.
    """

    def __init__(self, path: Path, family: Family, device: str) -> None:
        from ..vae import is_tiny, load_vae

        self.path = path
        self.vae = load_vae(path, device)
        self.tiny = is_tiny(self.vae)
        self.scale = 1.0 if self.tiny else family.scale

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean (B, C, H/8, W/8) and spread of the same shape, None for a tiny autoencoder; both on the CPU."""
        from ..vae import encode_images

        try:
            mean, deviation = encode_images(self.vae, images, self.scale, batch=len(images))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            height, width = images.shape[-2:]
            raise ValueError(f"not enough memory for {len(images)} images of {width} x {height} at a time; run "
                             "the same command again with a smaller --batch, it goes on from here") from error
        return half(mean, self.path), None if deviation is None else half(deviation, self.path)


class EdgeMaps:
    """Edge maps (B, 3, H, W) in 0..1, white on black, of images (B, 3, H, W) in 0..1."""

    def __init__(self, name: str, hed: Path | None, device: str) -> None:
        from ..control.hed import load_hed

        self.name, self.device = name, device
        if name == "hed" and hed is None:
            raise ValueError("edges of HED need the file of the network, ControlNetHED.pth; give it with --hed")
        self.network = load_hed(hed, device) if name == "hed" and hed is not None else None

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        from ..control.edges import canny, soft_edges
        from ..control.hed import hed_edges

        images = images.to(self.device)
        if self.network is not None:
            maps = hed_edges(self.network, images)
        else:
            maps = canny(images) if self.name == "canny" else soft_edges(images)
        return maps.expand(-1, 3, -1, -1)
