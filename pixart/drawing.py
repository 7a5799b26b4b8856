"""A request for images, and sampling it with a transformer in memory: captions in, latents out."""
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .config import PixArtConfig
from .image_to_image import Origin, check_begins_at_images
from .model.controlnet import PixArtControlNet
from .model.policy import Lane, Policy, Step
from .model.transformer import PixArtTransformer
from .resolution import LEAST_SIDE, MOST_SIDE, latent_sides
from .sampling.guidance import guided
from .sampling.noise import ImageNoise, check_seeds
from .sampling.samplers import SAMPLERS, sampler
from .sampling.schedule import STEPS, Callback, Noise, check_denoise
from .text.encoded import Encoded


@dataclass(frozen=True)
class Request:
    """What to draw. height and width: pixels, 16 to 8192; latents cover sides rounded up to multiples of 8."""

    prompts: tuple[str, ...]
    negative: str = ""
    height: int = 1024
    width: int = 1024
    sampler: str = "lcm"          # a key of SAMPLERS
    steps: int = 4
    guidance: float = 4.5         # classifier-free guidance scale; only guided samplers use it
    rule: str = "official"        # published timestep rule, one of the sampler's `rules`
    seed: int = 0                 # image i of the request uses seed + i
    denoise: float = 1.0          # above 0 to 1, all; below 1 sampling begins at an image, see image_to_image.py

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


@dataclass(frozen=True)
class Guide:
    """An edge map for the image to follow, white lines on black, (1 or B, 1 or 3, H, W) in 0..1, with its strength.

    It is scaled and cropped to the image size. start, end: fractions of the timesteps between which it applies, 0 the
    noise, 1 the finished image. latent: the map as a scaled latent of the image size, (1 or B, C, h, w), if it is
    already known; otherwise the autoencoder encodes it.
    """

    edges: Tensor
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    latent: Tensor | None = None

    def __post_init__(self) -> None:
        if self.edges.ndim != 4 or self.edges.shape[1] not in (1, 3):
            raise ValueError(f"the edge map has shape {tuple(self.edges.shape)}; expected (images, 1 or 3, height, "
                             "width)")
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(f"control from {self.start} to {self.end}; expected 0 <= start <= end <= 1")
        if not math.isfinite(self.strength):
            raise ValueError(f"control strength is {self.strength}; it must be a finite number, 0 for none")

    def rows(self, rows: Tensor) -> "Guide":
        """The guide for the images numbered by `rows`; a single map is shared by all images."""
        latent = self.latent if self.latent is None or len(self.latent) == 1 else self.latent[rows]
        return replace(self, edges=self.edges if len(self.edges) == 1 else self.edges[rows], latent=latent)

    def in_force(self, timestep: float) -> bool:
        """Whether it steers the step at this timestep, 0..999."""
        return self.strength != 0 and self.start <= 1 - timestep / (STEPS - 1) <= self.end


@dataclass(frozen=True)
class Control:
    """A ControlNet, what it follows, and that as a latent (1 or B, C, h, w) scaled like the image's."""

    network: PixArtControlNet
    guide: Guide
    hint: Tensor


class Conditioned:
    """The transformer as a sampler calls it, model(x, t) -> noise, with caption, image size and control filled in.

    Everything that stays constant over the steps is moved to the device beforehand. Use one for a single sampling: it
    counts the calls to know the timestep of each without synchronising with the device.
    """

    def __init__(self, model: PixArtTransformer, request: Request, context: Tensor, mask: Tensor,
                 control: Control | None, policies: Sequence[Policy] = ()) -> None:
        """context (R, L, C) and mask (R, L), on the CPU, have a row for every row of x that the sampler will pass."""
        weight, rows = model.x_embedder.proj.weight, len(mask)
        self.model, self.control, self.policies, self.dtype = model, control, policies, weight.dtype
        self.steps, self.calls = steps_of(request, rows), 0
        sides = (torch.full((rows,), float(side), device=weight.device) for side in (request.height, request.width))
        size = torch.stack(list(sides), dim=1)                                          # (R, 2)
        # Without padding there is nothing to mask: attention has a faster kernel then.
        keep = None if mask.numpy().all() else mask.to(weight.device)
        aspect, text = size[:, 0] / size[:, 1], context.to(weight.device, weight.dtype)
        self.conditions: tuple[Any, ...] = (text, keep, size, aspect)
        self.hint = None
        if control is not None:
            self.hint = control.hint.to(weight.device, weight.dtype).repeat(rows // len(control.hint), 1, 1, 1)

    @property
    def guides(self) -> bool:
        """Whether the next call takes the negative prompts too; else it takes the rows of the prompts alone."""
        step = self.steps[self.calls]
        return all(policy.guides(step.index, step.total) for policy in self.policies)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        x, step = x.to(self.dtype), self.steps[self.calls]
        self.calls += 1
        conditions, hint = self.conditions, self.hint
        if (less := len(step.lanes) - len(x)) > 0:
            step = step.part(range(less, len(step.lanes)))
            conditions = tuple(None if part is None else part[less:] for part in conditions)
            hint = None if hint is None else hint[less:]
        residuals = self.residuals(x, t, step.timestep, hint, conditions)
        return self.model(x, t, *conditions, control=residuals, policies=self.policies, step=step).float()

    def residuals(self, x: Tensor, t: Tensor, timestep: float, hint: Tensor | None,
                  conditions: tuple[Any, ...]) -> list[Tensor | None] | None:
        """What the ControlNet adds to the input of each block; None while it is not in force."""
        if self.control is None or not self.control.guide.in_force(timestep):
            return None
        found = self.control.network(self.model, hint, x, t, *conditions)
        return [None if residual is None else residual * self.control.guide.strength for residual in found]


def steps_of(request: Request, rows: int) -> list[Step]:
    """What policies are told at each call of the model. Rows: negative prompts, if any, then prompts, by image."""
    times = request.times
    images, run = range(len(request.prompts)), object()
    kinds = ("negative", "prompt") if rows > len(images) else ("prompt",)
    lanes = tuple(Lane(image, kind, kind == "negative") for kind in kinds for image in images)
    return [Step(index, len(times), timestep, lanes, run) for index, timestep in enumerate(times)]


@torch.inference_mode()
def sample(model: PixArtTransformer, request: Request, caption: Encoded, null: Encoded,
           callback: Callback | None = None, control: Control | None = None,
           policies: Sequence[Policy] = (), start: Tensor | None = None, origin: Origin | None = None) -> Tensor:
    """Latents (B, 4, H / 8, W / 8), scaled as the transformer sees them, on the model's device.

    caption: the request's prompts, a row each; null: its negative prompt, one row, read by guided samplers only.
    policies: caches and the like, see PixArtTransformer.forward. start: initial noise (B, C, H / 8, W / 8) in place of
    that of the seeds; noise that a sampler adds later comes from the seeds in any case. origin: the image to begin
    with, needed where the request's denoise is below 1.
    """
    check_origin(origin, request, model.config)
    chosen, count = SAMPLERS[request.sampler], len(request.prompts)
    context, mask = stack_captions(null, caption) if request.guided else (caption.context, caption.mask)
    network = Conditioned(model, request, context, mask, control, policies)
    noise = ImageNoise([request.seed + i for i in range(count)], (model.config.channels, *request.latent_shape),
                       model.x_embedder.proj.weight.device, ahead=chosen.noises(request.steps))
    draws = noise if start is None else starting_with(start.to(noise.device, noise.dtype), noise)
    both = guided(network, request.guidance)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        return both(x, t) if request.guided and network.guides else network(x, t)

    if origin is None:
        return chosen.run(predict, draws, request.steps, request.rule, callback)
    origin = origin.to(noise.device)
    network_of_rest, draws = origin.begin(predict, draws, request.times, request.denoise)
    drawn = chosen.run(network_of_rest, draws, request.steps, request.rule, callback, request.denoise)
    return origin.kept(drawn)


def starting_with(start: Tensor, noise: Noise) -> Noise:
    """The draws of `noise` with `start` in place of the first."""
    first = [start]

    def draw() -> Tensor:
        drawn = noise()
        return first.pop() if first else drawn
    return draw


def check_origin(origin: Origin | None, request: Request, config: PixArtConfig) -> None:
    """Refuse an image to begin with that does not fit the request, and a request that lacks one."""
    if origin is None:
        if request.denoise != 1:
            raise ValueError(f"denoise {request.denoise:g} needs an image to begin with; give one, or leave it at 1")
        return
    check_begins_at_images(request.sampler)
    shape, count = (config.channels, *request.latent_shape), len(request.prompts)
    if tuple(origin.latent.shape[1:]) != shape or len(origin.latent) not in (1, count):
        raise ValueError(f"the latent to begin with has shape {tuple(origin.latent.shape)}; these images need "
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


def check_given(guide: Guide | None, noise: Tensor | None, request: Request, config: PixArtConfig) -> None:
    """Refuse edge maps, and initial noise, that do not fit the request."""
    if guide is not None and len(guide.edges) not in (1, len(request.prompts)):
        raise ValueError(f"{len(guide.edges)} edge maps for {len(request.prompts)} images; give one, or one each")
    check_noise(noise, request, config)


def check_noise(noise: Tensor | None, request: Request, config: PixArtConfig) -> None:
    """Refuse initial noise whose shape does not fit the request."""
    shape = (len(request.prompts), config.channels, *request.latent_shape)
    if noise is not None and tuple(noise.shape) != shape:
        raise ValueError(f"the noise has shape {tuple(noise.shape)}; these images start from {shape}")


def stack_captions(null: Encoded, caption: Encoded) -> tuple[Tensor, Tensor]:
    """Null rows, then caption rows, padded to one length: context (2B, L, C) and mask (2B, L)."""
    count, length = len(caption.mask), max(null.mask.shape[1], caption.mask.shape[1])
    context = caption.context.new_zeros(2 * count, length, caption.context.shape[2])
    mask = torch.zeros(2 * count, length, dtype=torch.bool)
    for part, at in ((null, 0), (caption, count)):
        context[at:at + count, :part.mask.shape[1]] = part.context
        mask[at:at + count, :part.mask.shape[1]] = part.mask
    return context, mask
