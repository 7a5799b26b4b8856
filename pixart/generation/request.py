"""A request for images, and what must fit it: text features, noise, control images, a start image."""
import math
from dataclasses import dataclass

from torch import Tensor

from ..config import PixArtConfig
from ..control.control_image import ControlImage
from ..resolution import LEAST_SIDE, MOST_SIDE, latent_sides
from ..sampling.noise import check_seeds
from ..sampling.samplers import SAMPLERS, sampler
from ..sampling.schedule import check_denoise
from ..text.encoded import Encoded
from .image_to_image import Origin, check_takes_start_image


@dataclass(frozen=True)
class Request:
    """What to generate. height and width: pixels, 16 to 8192; latents cover sides rounded up to multiples of 8."""

    prompts: tuple[str, ...]
    negative: str = ""
    height: int = 1024
    width: int = 1024
    sampler: str = "lcm"          # a key of SAMPLERS
    steps: int = 4
    guidance: float = 4.5         # classifier-free guidance scale; only guided samplers use it
    rule: str = "official"        # published timestep rule, one of the sampler's `rules`
    seed: int = 0                 # image i of the request uses seed + i
    denoise: float = 1.0          # above 0 to 1, all; below 1 sampling starts from an image, see image_to_image.py

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("there is no prompt; give at least one, an empty one is allowed")
        if not LEAST_SIDE <= min(self.height, self.width) <= max(self.height, self.width) <= MOST_SIDE:
            raise ValueError(f"image size is {self.width}x{self.height}; both sides must be {LEAST_SIDE} pixels to "
                             f"{MOST_SIDE}")
        if self.steps < 1:
            raise ValueError(f"{self.steps} steps asked for; at least 1 is needed")
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance is {self.guidance}; it must be a finite number, 1 for none")
        check_seeds([self.seed + i for i in range(len(self.prompts))])
        check_denoise(self.denoise)
        sampler(self.sampler).times(self.steps, self.rule, self.denoise)

    @property
    def guided(self) -> bool:
        return SAMPLERS[self.sampler].guided and self.guidance != 1

    @property
    def times(self) -> list[float]:
        """The timesteps the model is called at, in order."""
        return SAMPLERS[self.sampler].times(self.steps, self.rule, self.denoise)

    @property
    def latent_shape(self) -> tuple[int, int]:
        return latent_sides(self.height, self.width)


def check_origin(origin: Origin | None, request: Request, config: PixArtConfig) -> None:
    """Refuse a start image that does not fit the request, and a request that lacks one."""
    if origin is None:
        if request.denoise != 1:
            raise ValueError(f"denoise {request.denoise:g} needs a start image; give one, or leave it at 1")
        return
    check_takes_start_image(request.sampler)
    shape, count = (config.channels, *request.latent_shape), len(request.prompts)
    if tuple(origin.latent.shape[1:]) != shape or len(origin.latent) not in (1, count):
        raise ValueError(f"the latent of the start image has shape {tuple(origin.latent.shape)}; these images need "
                         f"{(count, *shape)}, or one for all")
    if origin.mask is not None and tuple(origin.mask.shape) not in {(n, 1, *request.latent_shape) for n in (1, count)}:
        raise ValueError(f"the mask of the latent has shape {tuple(origin.mask.shape)}; these images need "
                         f"{(count, 1, *request.latent_shape)}, or one for all")


def check_captions(caption: Encoded, request: Request, config: PixArtConfig) -> None:
    """Refuse text features that cannot belong to the request or the model, before the transformer is even loaded."""
    check_width(caption, config)
    if len(caption) != len(request.prompts):
        raise ValueError(f"{len(caption)} encoded prompts for {len(request.prompts)} images; there must be one each")


def check_negative(null: Encoded, config: PixArtConfig) -> None:
    """The same for a negative prompt, of which there is one for all images."""
    check_width(null, config)
    if len(null) != 1:
        raise ValueError(f"{len(null)} negative prompts; give one, it holds for all images")


def check_width(text: Encoded, config: PixArtConfig) -> None:
    if text.context.shape[2] != config.caption_width:
        raise ValueError(f"the text features have width {text.context.shape[2]}, this model reads "
                         f"{config.caption_width}; use the T5 encoder that belongs to it")


def check_given(control: ControlImage | None, noise: Tensor | None, request: Request, config: PixArtConfig) -> None:
    """Refuse edge maps, and initial noise, that do not fit the request."""
    if control is not None and len(control.edges) not in (1, len(request.prompts)):
        raise ValueError(f"{len(control.edges)} edge maps for {len(request.prompts)} images; give one, or one each")
    check_noise(noise, request, config)


def check_noise(noise: Tensor | None, request: Request, config: PixArtConfig) -> None:
    """Refuse initial noise whose shape does not fit the request."""
    shape = (len(request.prompts), config.channels, *request.latent_shape)
    if noise is not None and tuple(noise.shape) != shape:
        raise ValueError(f"the noise has shape {tuple(noise.shape)}; these images start from {shape}")
