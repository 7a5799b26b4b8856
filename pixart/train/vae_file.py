"""Which VAE decodes the latents of a training where something looks at images."""
from pathlib import Path

from ..config import PixArtConfig
from ..mini import shipped_for


def vae_file(chosen: Path | None, config: PixArtConfig, asked: str, setting: str) -> Path:
    """The chosen one, or PixArt-mini's for its models. ValueError that `setting` is needed, since `asked` looks."""
    shipped = shipped_for(config)
    file = chosen or (shipped.vae if shipped else None)
    if file is None:
        raise ValueError(f"{asked}, which looks at images: {setting} is needed, the file to decode the latents with "
                         "(published: a tiny VAE, taesd)")
    return file
