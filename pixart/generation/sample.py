"""From text features to latents: a request sampled with a transformer in memory."""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..control.control_image import ControlImage
from ..model.controlnet import PixArtControlNet
from ..model.policy import Lane, Policy, Step
from ..model.transformer import PixArtTransformer
from ..sampling.guidance import guided
from ..sampling.noise import ImageNoise
from ..sampling.samplers import SAMPLERS
from ..sampling.schedule import Callback, Noise
from ..text.encoded import Encoded, stack_captions
from .image_to_image import Origin
from .request import Request, check_origin


@dataclass(frozen=True)
class AppliedControl:
    """A ControlNet, what it follows, and that as a latent (1 or B, C, h, w) scaled like the image's."""

    network: PixArtControlNet
    image: ControlImage
    hint: Tensor


class Conditioned:
    """The transformer as a sampler calls it, model(x, t) -> noise, with caption, image size and control filled in.

    Everything that stays constant over the steps is moved to the device beforehand. Use one for a single sampling: it
    counts the calls to know the timestep of each without synchronising with the device.
    """

    def __init__(self, model: PixArtTransformer, request: Request, context: Tensor, mask: Tensor,
                 control: AppliedControl | None, policies: Sequence[Policy] = ()) -> None:
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
        if self.control is None or not self.control.image.in_force(timestep):
            return None
        found = self.control.network(self.model, hint, x, t, *conditions)
        return [None if residual is None else residual * self.control.image.strength for residual in found]


def steps_of(request: Request, rows: int) -> list[Step]:
    """What policies are told at each call of the model. Rows: negative prompts, if any, then prompts, by image."""
    times = request.times
    images, run = range(len(request.prompts)), object()
    kinds = ("negative", "prompt") if rows > len(images) else ("prompt",)
    lanes = tuple(Lane(image, kind, kind == "negative") for kind in kinds for image in images)
    return [Step(index, len(times), timestep, lanes, run) for index, timestep in enumerate(times)]


@torch.inference_mode()
def sample(model: PixArtTransformer, request: Request, caption: Encoded, null: Encoded,
           callback: Callback | None = None, control: AppliedControl | None = None,
           policies: Sequence[Policy] = (), start: Tensor | None = None, origin: Origin | None = None) -> Tensor:
    """Latents (B, 4, H / 8, W / 8), scaled as the transformer sees them, on the model's device.

    caption: the request's prompts, a row each; null: its negative prompt, one row, read by guided samplers only.
    policies: caches and the like, see PixArtTransformer.forward. start: initial noise (B, C, H / 8, W / 8) in place of
    that of the seeds; noise that a sampler adds later comes from the seeds in any case. origin: of the start
    image, needed where the request's denoise is below 1.
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
    sampled = chosen.run(network_of_rest, draws, request.steps, request.rule, callback, request.denoise)
    return origin.kept(sampled)


def starting_with(start: Tensor, noise: Noise) -> Noise:
    """The draws of `noise` with `start` in place of the first."""
    first = [start]

    def draw() -> Tensor:
        drawn = noise()
        return first.pop() if first else drawn
    return draw
