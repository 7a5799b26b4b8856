"""What distinguishes one PixArt checkpoint from another, and nothing else."""
from dataclasses import dataclass, replace
from typing import Any

LATENT_SCALE = {"sd": 0.18215, "sdxl": 0.13025}


@dataclass(frozen=True)
class KVCompression:
    """Key/value token compression of PixArt-Sigma (section 3.2 of its paper)."""

    mode: str                  # "conv", "ave", "uniform" or "uniform_every"
    factor: int                # each factor x factor patch of tokens gives one key and one value
    layers: tuple[int, ...]    # indices of the blocks that compress

    def __post_init__(self) -> None:
        if self.mode not in ("conv", "ave", "uniform", "uniform_every"):
            raise ValueError(f"unknown key/value compression {self.mode!r}; "
                             "use conv, ave, uniform or uniform_every")
        if self.factor < 2:
            raise ValueError(f"key/value compression factor is {self.factor}; it must be 2 or more")


@dataclass(frozen=True)
class PixArtConfig:
    """Architecture and conditioning of one checkpoint. Defaults are PixArt-alpha/delta 1024-MS."""

    depth: int = 28                    # transformer blocks; 42 in the 900M community models
    hidden: int = 1152                 # token width
    heads: int = 16
    patch: int = 2                     # latent pixels per token side
    channels: int = 4                  # latent channels
    learned_variance: bool = True      # twice the channels come out: noise, then variance logits
    caption_width: int = 4096          # width of the text encoder's output
    caption_tokens: int = 120          # longest caption in training: 120 alpha, 300 Sigma
    base_size: int = 64                # training latent side / 2; the position table spans base_size / position_scale
    position_scale: float = 2.0        # "lewei_scale", "pe_interpolation", "interpolation_scale" elsewhere
    micro_conditioning: bool = True    # image size and aspect ratio enter with the timestep
    latent_space: str = "sd"           # "sd" (x 0.18215) for alpha and delta, "sdxl" (x 0.13025) for Sigma
    qk_norm: bool = False
    kv_compression: KVCompression | None = None

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise ValueError(f"width {self.hidden} is not divisible by {self.heads} heads")
        if self.hidden % 4:
            raise ValueError(f"width {self.hidden} is not a multiple of 4, as the position table needs")
        if self.micro_conditioning and self.hidden % 3:
            raise ValueError(f"width {self.hidden} is not a multiple of 3, as size conditioning needs")
        if self.latent_space not in LATENT_SCALE:
            raise ValueError(f"unknown latent space {self.latent_space!r}; use {' or '.join(LATENT_SCALE)}")
        if min(self.depth, self.hidden, self.patch, self.channels, self.caption_tokens) < 1:
            raise ValueError(f"all sizes must be positive: {self}")
        if self.position_scale <= 0 or self.base_size <= 0:
            raise ValueError(f"base size {self.base_size} and position scale {self.position_scale} must be positive")

    @property
    def out_channels(self) -> int:
        return self.channels * (2 if self.learned_variance else 1)

    @property
    def latent_scale(self) -> float:
        """What the VAE's latents are multiplied by before they enter the transformer."""
        return LATENT_SCALE[self.latent_space]

    @property
    def cleans_captions(self) -> bool:
        """Alpha was trained on cleaned, lower-case captions; Sigma on captions as written."""
        return self.latent_space == "sd"

    @property
    def resolution(self) -> int:
        """Side in pixels of the square images it was trained on."""
        return self.base_size * self.patch * 8


_ALPHA = PixArtConfig(micro_conditioning=False)
_SIGMA = PixArtConfig(micro_conditioning=False, caption_tokens=300, latent_space="sdxl")


def _at(config: PixArtConfig, base_size: int, position_scale: float, **changes: Any) -> PixArtConfig:
    return replace(config, base_size=base_size, position_scale=position_scale, **changes)


# What a user may choose where the weights cannot tell. Depth and widths always come from the weights.
VARIANTS: dict[str, PixArtConfig] = {
    "alpha-256": _at(_ALPHA, 16, 1.0),
    "alpha-512": _at(_ALPHA, 32, 1.0),
    "alpha-1024": _at(_ALPHA, 64, 2.0, micro_conditioning=True),
    "sigma-256": _at(_SIGMA, 16, 0.5),
    "sigma-512": _at(_SIGMA, 32, 1.0),
    "sigma-1024": _at(_SIGMA, 64, 2.0),
    "sigma-2k": _at(_SIGMA, 128, 4.0),
    "alpha-256-mup": _at(_ALPHA, 16, 1.0),      # as alpha-256; the muP readout multiplier is folded on load
}
