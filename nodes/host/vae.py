"""Whether a VAE of the host can be one of PixArt, checked before it encodes anything."""
from typing import Any

CHANNELS = 4


def check_vae(vae: Any) -> None:
    """ValueError for latents of another number of channels than PixArt's; one that does not state it passes."""
    channels = getattr(vae, "latent_channels", CHANNELS)
    if channels != CHANNELS:
        raise ValueError(f"this VAE makes latents of {channels} channels, PixArt's have {CHANNELS}; connect the VAE of "
                         "the model, which Load PixArt names")
