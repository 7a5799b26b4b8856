"""The embedded model in the host: previews in the colours of its own latents."""
import torch
from support import load, pack


def test_previews_of_mini_show_its_own_colours_and_leave_others_alone():
    """A red star used to preview orange: its autoencoder is not Stable Diffusion's."""
    from comfy import latent_formats
    from latent_preview import Latent2RGBPreviewer
    mini = pack("pixart.mini").SHIPPED
    model = pack("nodes.host.model").load_model(str(mini.student), "auto", "fp32")
    found = model.model.latent_format
    previewer = Latent2RGBPreviewer(found.latent_rgb_factors, found.latent_rgb_factors_bias)
    autoencoder = pack("pixart.mini.autoencoder").load_autoencoder(mini.vae)
    for channel, colour in ((0, (0.87, 0.13, 0.15)), (2, (0.16, 0.39, 0.97))):
        with torch.no_grad():
            latents = autoencoder.encode(torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 128, 128))
        shown = torch.tensor(list(previewer.decode_latent_to_preview(latents).resize((1, 1)).getdata()[0]))
        assert shown.argmax() == channel, shown
    other = load("alpha-1024").model.latent_format
    assert other.latent_rgb_factors == latent_formats.SD15().latent_rgb_factors
