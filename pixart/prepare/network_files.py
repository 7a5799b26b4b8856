"""Text encoder and autoencoder of files, as preparing asks for them."""
from functools import partial
from pathlib import Path

from ..text.t5 import require_t5
from ..vae import require_scale, require_vae
from ..weights.fingerprint import weights_fingerprint
from .families import Family
from .networks import ImageEncoder, Networks, TextEncoder


def from_files(vae: Path | None, t5: Path | None, bits: int, family: Family, device: str) -> Networks:
    """Networks of a VAE file or folder and a T5 encoder file or folder.

    FileNotFoundError for what is not there, ValueError for what is something else or of another latent space: before
    any of them is used.
    """
    if vae is not None:
        require_vae(vae)
        require_scale(vae, family.scale, f"the {family.name} family")
    if t5 is not None:
        require_t5(t5)

    def open_text(path: Path) -> TextEncoder:
        from ..text.t5 import T5Encoder
        return T5Encoder(path, bits, device)

    def open_images(path: Path) -> ImageEncoder:
        from .latents import LatentEncoder
        return LatentEncoder(path, family, device)

    return Networks(partial(open_text, t5) if t5 else None, partial(open_images, vae) if vae else None,
                    {"VAE": weights_fingerprint(vae), "T5": weights_fingerprint(t5), "T5 bits": bits if t5 else None})
