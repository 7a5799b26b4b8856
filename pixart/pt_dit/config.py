"""What distinguishes one PT-DiT from another."""
from dataclasses import dataclass

from ..config import PixArtConfig
from ..sampling.flow import flow_shift_of

AUTOENCODERS = {"sd": "the VAE of Stable Diffusion (sd-vae-ft-ema)",
                "open-sora-plan-1.2": "the causal VAE of Open-Sora-Plan 1.2"}     # whose latents it makes; for display


@dataclass(frozen=True)
class PTDiTConfig(PixArtConfig):
    """The fields it shares with PixArt, and its own. Defaults are the published text-to-image model of 1 B
    parameters, apart from its autoencoder.

    `base_size` only says for which resolution it was trained: its positions are counted in tokens, divided by
    `position_scale`, and not stretched to the image.
    """

    caption_tokens: int = 200
    position_scale: float = 1.0
    micro_conditioning: bool = False
    window: int = 8                # tokens on a side of a window
    proxy: int = 8                 # tokens on a side of the square that one proxy token stands for
    shifted: bool = True           # blocks attend in shifted windows too
    flow_side: int = 512           # side in pixels of the image whose noise levels are not shifted
    autoencoder: str = "sd"        # whose latents it makes: sd, or open-sora-plan-1.2 as the published one

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.micro_conditioning or self.qk_norm or self.kv_compression is not None:
            raise ValueError("a PT-DiT has neither size conditioning nor query/key norm nor key/value compression")
        if self.hidden % 16:
            raise ValueError(f"width {self.hidden} is not a multiple of 16, as the positions of a PT-DiT need")
        if self.window < 1 or self.proxy < 1 or self.window % self.proxy:
            raise ValueError(f"windows of {self.window} tokens a side do not divide into proxies of {self.proxy}")
        if self.autoencoder not in AUTOENCODERS:
            raise ValueError(f"unknown autoencoder {self.autoencoder!r}; use {' or '.join(AUTOENCODERS)}")
        if self.flow_side < 1:
            raise ValueError(f"flow_side is {self.flow_side} pixels; it must be at least 1")

    def flow_shift(self, height: int, width: int) -> float:
        """Shift of the noise levels towards noise for an image of height x width pixels; 1 is none."""
        return flow_shift_of(height, width, self.flow_side)
