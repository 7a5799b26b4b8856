"""Image to image: sampling that starts from a given image, and inpainting, which regenerates only a part of it.

denoise, above 0 and at most 1, says at how much noise it starts: 1 at pure noise, where nothing of the image is left.
Below, the latent z0 of the image is noised to the first timestep t that the sampler then visits, alpha_t z0 + sigma_t
noise. Which timesteps these are, each sampler says (`Sampler.times`): guided ones take the last `steps` of
int(steps / denoise), as ComfyUI's KSampler does; lcm spreads its steps over that share of its grid; tdm keeps that
share of its steps.

A mask is 1 where the image is regenerated and 0 where it is kept. As in ComfyUI (KSamplerX0Inpaint) the model sees the
kept part noised to the timestep with the noise that the sampling started from, and predicts the original there. In the
result the kept pixels are those of the image itself, not decoded ones.
"""
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from ..control.images import WHITE, fit, opaque
from ..resolution import latent_sides
from ..sampling.dpm_solver import node_at
from ..sampling.samplers import FROM_NOISE_ALONE, SAMPLERS
from ..sampling.schedule import Model, Noise, check_denoise
from ..vae import Autoencoder, encode_images

if TYPE_CHECKING:
    from .request import Request

CELL = 8        # pixels of the side of a cell of the latent
FINE = 4096     # steps from 0 to 1 of a mask: ones stay exactly 1 when it is scaled, with weights that nearly sum to 1


@dataclass(frozen=True)
class Origin:
    """What sampling starts from: a scaled latent (1 or B, C, h, w), and where it is regenerated, (1 or B, 1, h, w).

    mask: in 0..1, 1 regenerated; None: everything.
    """

    latent: Tensor
    mask: Tensor | None = None

    def rows(self, rows: Tensor) -> "Origin":
        """For the images numbered by `rows`; a single latent or mask is shared by all images."""
        return Origin(shared(self.latent, rows), None if self.mask is None else shared(self.mask, rows))

    def to(self, device: torch.device | str) -> "Origin":
        """In float32 on a device."""
        return Origin(self.latent.to(device, torch.float32),
                      None if self.mask is None else self.mask.to(device, torch.float32))

    def begin(self, model: Model, noise: Noise, times: Sequence[float], denoise: float) -> tuple[Model, Noise]:
        """The model and the draws of noise for a sampler that visits `times`. Use them for one sampling."""
        drawn, node = noise(), node_at(times[0])
        waiting = [drawn if denoise == 1 else node.alpha * self.latent + node.sigma * drawn]
        inside = model if self.mask is None else Inpainting(model, self.latent, self.mask, drawn, times)
        return inside, lambda: waiting.pop() if waiting else noise()

    def kept(self, sampled: Tensor) -> Tensor:
        """Sampled latents (B, C, h, w) with the original exactly where the mask is 0."""
        return sampled if self.mask is None else torch.where(self.mask == 0, self.latent, sampled)


class Inpainting:
    """model(x, t) -> noise, whose prediction of the clean latent is the original where the mask is 0.

    Use one for a single sampling: it counts the calls to know the timestep of each without synchronising with the
    device.
    """

    def __init__(self, model: Model, latent: Tensor, mask: Tensor, noise: Tensor, times: Sequence[float]) -> None:
        """latent, mask: those of an Origin; noise (B, C, h, w) that the sampling starts from; times: of the calls."""
        self.model, self.latent, self.mask, self.noise = model, latent, mask, noise
        self.nodes, self.calls = [node_at(time) for time in times], 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """With x0 = (x - sigma eps) / alpha the sampler finds mask x0(seen) + (1 - mask) z0.

        seen is what the model is given. Where the mask is 1, seen is x and the answer the model's, bit for bit.
        """
        _, alpha, sigma = self.nodes[self.calls]
        self.calls += 1
        mask, keep = self.mask, 1 - self.mask
        seen = mask * x + keep * (alpha * self.latent + sigma * self.noise)
        return mask * self.model(seen, t) + (mask * (x - seen) + keep * (x - alpha * self.latent)) / sigma


@dataclass(frozen=True)
class StartImage:
    """An image to start from (1 or B, 1, 3 or 4, H, W) in 0..1, how much of it is regenerated, and where.

    Transparency is blended with white. denoise: above 0 to 1, see the text above. mask: (1 or B, 1, H, W) in 0..1 of
    the same H and W, 1 regenerated, 0 kept; None: everything is regenerated. Both are scaled and cropped to the
    size of the result. Raises ValueError.
    """

    image: Tensor
    denoise: float = 1.0
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        check_denoise(self.denoise)
        check_pixels("start image", self.image, (1, 3, 4))
        if self.mask is None:
            return
        check_pixels("mask", self.mask, (1,))
        if self.mask.shape[2:] != self.image.shape[2:]:
            raise ValueError(f"the mask is {sides_text(self.mask)} pixels and the image {sides_text(self.image)}; both "
                             "must have the same size")

    def fitted(self, request: "Request") -> "StartImage":
        """With opaque pixels (1 or B, 3, height, width) of the request, and a mask of this size.

        ValueError for another number of images, and for a sampler that cannot start from an image.
        """
        check_takes_start_image(request.sampler)
        count, height, width = len(request.prompts), request.height, request.width
        for what, given in (("start images", self.image), ("masks", self.mask)):
            if given is not None and len(given) not in (1, count):
                raise ValueError(f"{len(given)} {what} for {count} images; give one, or one each")
        image = fit(opaque(self.image.cpu(), WHITE), width, height).clamp(0, 1).expand(-1, 3, -1, -1)
        if self.mask is None:
            return replace(self, image=image)
        mask = fit(self.mask.cpu().float(), width, height)
        return replace(self, image=image, mask=(mask * FINE).round() / FINE)

    def origin(self, vae: Autoencoder, latent_scale: float) -> Origin:
        """Of a fitted one, by the autoencoder; see `encode_images` for the scale.

        Sides off the grid of 8 are padded with their last pixels. A cell of the latent is regenerated by the share
        of its pixels that are.
        """
        latent = encode_images(vae, whole_cells(self.image), latent_scale, batch=1)[0]
        return Origin(latent, None if self.mask is None else avg_pool2d(whole_cells(self.mask), CELL))

    def pasted(self, pixels: Tensor) -> Tensor:
        """Pixels of the result (B, 3, height, width): the fitted image's where the mask is 0, blended in between."""
        if self.mask is None:
            return pixels
        return self.mask * pixels + (1 - self.mask) * self.image


def start_image(image: Tensor | None, denoise: float | None, mask: Tensor | None) -> StartImage | None:
    """What image, denoise and mask ask for together; None where there is no image. ValueError for half of it.

    denoise None is 1 beside a mask. Without one it must be given: at 1, nothing of the image would be seen.
    """
    if image is None:
        for name, given in (("denoise", denoise), ("mask", mask)):
            if given is not None:
                raise ValueError(f"{name} has no effect without image, the start image")
        return None
    if denoise is None and mask is None:
        raise ValueError("a start image needs denoise, how much of it is regenerated, such as 0.6, or a mask of where")
    return StartImage(image, 1.0 if denoise is None else denoise, mask)


def output_size(start: StartImage | None, height: int | None, width: int | None, side: int) -> tuple[int, int]:
    """(height, width): as asked for; what is not asked for follows from the start image, else it is `side`."""
    if start is None:
        return side if height is None else height, side if width is None else width
    own_height, own_width = start.image.shape[2:]
    if height is None and width is None:
        return own_height, own_width
    return (round(own_height * (width or 0) / own_width) if height is None else height,
            round(own_width * (height or 0) / own_height) if width is None else width)


def check_takes_start_image(sampler: str) -> None:
    """ValueError for a sampler that starts from pure noise alone."""
    if not SAMPLERS[sampler].takes_start_image:
        raise ValueError(FROM_NOISE_ALONE)


def check_pixels(what: str, pixels: Tensor, channels: tuple[int, ...]) -> None:
    """Refuse another shape than (images, one of these numbers of channels, H, W), and values beyond 0..1."""
    if pixels.ndim != 4 or pixels.shape[1] not in channels or 0 in pixels.shape:
        raise ValueError(f"the {what} has shape {tuple(pixels.shape)}; expected (images, "
                         f"{' or '.join(map(str, channels))}, height, width)")
    if not pixels.is_floating_point() or not ((pixels >= 0) & (pixels <= 1)).all():
        raise ValueError(f"the {what} has values beyond 0..1, or none with a fraction ({pixels.dtype}); "
                         "divide pixels of 8 bits by 255")


def shared(values: Tensor, rows: Tensor) -> Tensor:
    return values if len(values) == 1 else values[rows]


def whole_cells(pixels: Tensor) -> Tensor:
    """(N, C, H, W) with sides of whole cells, padded to the right and below by repeating the last pixel."""
    height, width = pixels.shape[2:]
    rows, columns = latent_sides(height, width)
    return pad(pixels, (0, CELL * columns - width, 0, CELL * rows - height), mode="replicate")


def sides_text(pixels: Tensor) -> str:
    return f"{pixels.shape[3]} x {pixels.shape[2]}"
