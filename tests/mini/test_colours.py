"""Previews of PixArt-mini show the colours of its own latents."""
import torch

from pixart.mini import SHIPPED
from pixart.mini.autoencoder import load_autoencoder
from pixart.mini.colours import LATENT_RGB, LATENT_RGB_BIAS, fit_colours
from pixart.mini.judge import fresh_batch


def test_the_colours_are_those_of_the_shipped_autoencoder() -> None:
    vae = load_autoencoder(SHIPPED.vae)
    images = torch.cat([fresh_batch(step, 20, "colours")[1] for step in (0, 5, 10)])
    factors, bias = fit_colours(vae, images)
    assert torch.allclose(factors, torch.tensor(LATENT_RGB), atol=0.06)
    assert torch.allclose(bias, torch.tensor(LATENT_RGB_BIAS), atol=0.06)


def test_a_blue_image_previews_blue_and_a_red_one_red() -> None:
    vae = load_autoencoder(SHIPPED.vae)
    for channel, colour in ((0, (0.87, 0.13, 0.15)), (2, (0.16, 0.39, 0.97))):
        image = torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 128, 128)
        with torch.no_grad():
            latent = vae.encode(image).mean((0, 2, 3))
        shown = latent @ torch.tensor(LATENT_RGB) + torch.tensor(LATENT_RGB_BIAS)
        assert shown.argmax() == channel
