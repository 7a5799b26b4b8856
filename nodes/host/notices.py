"""Notices that are no errors: an image size far from the trained ones, the VAE to use."""
import logging
from typing import Any

from ...pixart.mini import is_mini
from ...pixart.pt_dit.config import AUTOENCODERS, PTDiTConfig
from ...pixart.resolution import size_notice
from .node_text import show_text

logger = logging.getLogger(__name__)

VAE_OF = {"sd": "the VAE of Stable Diffusion (sd-vae-ft-ema)", "sdxl": "the VAE of SDXL"}


def notice_size(config: Any, height: int, width: int) -> None:
    """config: a PixArtConfig, or None for a network of another loader. Sides in pixels."""
    if config is not None and (found := size_notice(height, width, config.resolution)):
        logger.warning(found)
        show_text(found)


def vae_for(config: Any) -> str:
    """Which VAE belongs to a model of this configuration, for messages."""
    if isinstance(config, PTDiTConfig) and not is_mini(config):
        return AUTOENCODERS[config.autoencoder]
    return "pixart-mini/vae" if is_mini(config) else VAE_OF[config.latent_space]
