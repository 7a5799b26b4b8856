"""What the models of a family expect of their data."""
from dataclasses import dataclass

from ..config import LATENT_SCALE
from ..resolution import ASPECT_RATIOS


@dataclass(frozen=True)
class Family:
    """As in the data sets of the official training (`diffusion/data/datasets/InternalData_ms.py` of PixArt-alpha)."""

    name: str
    latent_space: str           # which autoencoder: "sd" or "sdxl"
    tokens: int                 # longest caption
    clean: bool                 # captions are cleaned and lower-cased
    widest: float               # images longer than this times their short side are left out
    tells_original: bool        # a model is told an image's own size and the bin's ratio, not the bucket's
    resolutions: tuple[int, ...]

    @property
    def scale(self) -> float:
        """What latents of the autoencoder are multiplied with."""
        return LATENT_SCALE[self.latent_space]


_LARGE = tuple(side for side in ASPECT_RATIOS if side >= 256)
FAMILIES = {
    "alpha": Family("alpha", "sd", 120, True, 4.0, True, _LARGE),       # delta too
    "sigma": Family("sigma", "sdxl", 300, False, 4.5, True, _LARGE),
    "mini": Family("mini", "sd", 256, True, 4.0, False, (128,)),
}
