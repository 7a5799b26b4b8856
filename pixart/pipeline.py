"""Prompt in, picture out, without ComfyUI: the parts of the library wired together.

Two stages, so that the text encoder and the transformer are never in memory at the same time.
"""
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .config import PixArtConfig
from .control.pictures import fit
from .model.controlnet import PixArtControlNet
from .model.transformer import PixArtTransformer
from .sampling.dmd import dmd
from .sampling.dpm_solver import dpm_solver_pp
from .sampling.guidance import guided
from .sampling.lcm import lcm, lcm_timesteps
from .sampling.noise import PictureNoise
from .sampling.schedule import STEPS, Callback
from .text.encoded import Encoded
from .text.tokens import PromptReport

logger = logging.getLogger(__name__)

SAMPLERS = ("lcm", "dpm", "dmd")
Progress = Callable[[str, int, int], None]       # (stage, done, total); may raise to stop


@dataclass(frozen=True)
class Request:
    """What to draw. height and width are pixels, at least 16; sides off the VAE's grid of 8 are rounded up inside."""

    prompts: tuple[str, ...]
    negative: str = ""
    height: int = 1024
    width: int = 1024
    sampler: str = "lcm"
    steps: int = 4
    guidance: float = 4.5         # classifier-free guidance scale of "dpm"; the other samplers are distilled without
    rule: str = "official"        # which published timestep rule, see the samplers
    seed: int = 0                 # picture i of the request uses seed + i

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("there is no prompt; give at least one, an empty one is allowed")
        if min(self.height, self.width) < 16:
            raise ValueError(f"picture size is {self.width}x{self.height}; both sides must be at least 16 pixels")
        if self.sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler {self.sampler!r}; use {', '.join(SAMPLERS)}")
        if self.steps < 1:
            raise ValueError(f"{self.steps} steps asked for; at least 1 is needed")
        if self.sampler == "dmd" and self.steps != 1:
            raise ValueError(f"the dmd sampler makes exactly 1 step, not {self.steps}")

    @property
    def guided(self) -> bool:
        return self.sampler == "dpm" and self.guidance != 1

    @property
    def latent_shape(self) -> tuple[int, int]:
        return -(-self.height // 8), -(-self.width // 8)


@dataclass(frozen=True)
class Guide:
    """An edge map for the picture to follow: white lines on black, (1 or B, 3, H, W) in 0..1, and how closely.

    It is scaled and cut to the size of the picture. start and end: from which to which share of the timesteps it is
    in force, 0 the noise, 1 the finished picture.
    """

    edges: Tensor
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if self.edges.ndim != 4 or self.edges.shape[1] != 3:
            raise ValueError(f"the edge map has shape {tuple(self.edges.shape)}; expected (pictures, 3, height, width)")
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(f"control from {self.start} to {self.end}; expected 0 <= start <= end <= 1")

    def in_force(self, timestep: Tensor) -> bool:
        share = 1 - timestep.flatten()[0].item() / (STEPS - 1)
        return self.strength != 0 and self.start <= share <= self.end


@dataclass(frozen=True)
class Control:
    """A ControlNet, what it follows, and that as a latent (B, C, h, w) scaled like the picture's."""

    network: PixArtControlNet
    guide: Guide
    hint: Tensor

    def residuals(self, base: PixArtTransformer, x: Tensor, t: Tensor,
                  *conditions: Tensor) -> list[Tensor | None] | None:
        """For `control` of the base's forward; conditions are its context, mask, size and aspect."""
        if not self.guide.in_force(t):
            return None
        hint = self.hint.to(x).repeat(len(x) // len(self.hint), 1, 1, 1)
        found = self.network(base, hint, x, t, *conditions)
        return [None if residual is None else residual * self.guide.strength for residual in found]


def encode(t5: str | Path, request: Request, max_tokens: int, clean: bool, bits: int = 8,
           device: torch.device | str = "cpu") -> tuple[Encoded, Encoded]:
    """Text features of the prompts and of the negative prompt; the encoder is freed before returning."""
    from .text.t5 import T5Encoder
    encoder = T5Encoder(t5, bits=bits, device=device)
    try:
        return (encoder.encode(list(request.prompts), max_tokens, clean),
                encoder.encode([request.negative], max_tokens, clean))
    finally:
        encoder.close()


def check_captions(caption: Encoded, request: Request, config: PixArtConfig) -> None:
    """Refuse text features that cannot belong to the request or the model, before the transformer is even loaded."""
    if caption.context.shape[2] != config.caption_width:
        raise ValueError(f"the text features have width {caption.context.shape[2]}, this model reads "
                         f"{config.caption_width}; use the T5 encoder that belongs to it")
    if len(caption) != len(request.prompts):
        raise ValueError(f"{len(caption)} encoded prompts for {len(request.prompts)} pictures; there must be one each")


def stack_captions(null: Encoded, caption: Encoded) -> tuple[Tensor, Tensor]:
    """Null rows, then caption rows, padded to one length: context (2B, L, C) and mask (2B, L)."""
    count, length = len(caption.mask), max(null.mask.shape[1], caption.mask.shape[1])
    context = caption.context.new_zeros(2 * count, length, caption.context.shape[2])
    mask = torch.zeros(2 * count, length, dtype=torch.bool)
    for part, at in ((null, 0), (caption, count)):
        context[at:at + count, :part.mask.shape[1]] = part.context
        mask[at:at + count, :part.mask.shape[1]] = part.mask
    return context, mask


@torch.inference_mode()
def sample(model: PixArtTransformer, request: Request, caption: Encoded, null: Encoded,
           callback: Callback | None = None, control: Control | None = None) -> Tensor:
    """Latents (B, 4, H / 8, W / 8), scaled as the transformer sees them, on the model's device."""
    weight = model.x_embedder.proj.weight
    count, (h, w) = len(request.prompts), request.latent_shape
    context, mask = stack_captions(null, caption) if request.guided else (caption.context, caption.mask)
    context, mask = context.to(weight.device, weight.dtype), mask.to(weight.device)
    size = torch.tensor([[request.height, request.width]] * len(mask), dtype=torch.float32, device=weight.device)

    def network(x: Tensor, t: Tensor) -> Tensor:
        x, aspect = x.to(weight.dtype), size[:, 0] / size[:, 1]
        residuals = control and control.residuals(model, x, t, context, mask, size, aspect)
        return model(x, t, context, mask, size, aspect, control=residuals).float()

    noise = PictureNoise([request.seed + i for i in range(count)], (model.config.channels, h, w), weight.device)
    if request.sampler == "dmd":
        return dmd(network, noise(), callback)
    if request.sampler == "lcm":
        return lcm(network, noise(), lcm_timesteps(request.steps, request.rule), noise, callback)
    return dpm_solver_pp(guided(network, request.guidance) if request.guided else network, noise(), request.steps,
                         request.rule, callback)


def load_guide(path: str | Path, guide: Guide, vae: nn.Module, model: PixArtTransformer, request: Request) -> Control:
    """The ControlNet of a file, on device and in dtype of its base, with the edge map encoded at the picture's size."""
    from .checkpoint import load_control
    from .vae import encode as encode_pictures
    weight = model.x_embedder.proj.weight
    network = load_control(path, weight.dtype, weight.device)
    height, width = (8 * side for side in request.latent_shape)
    edges = fit(guide.edges, width, height)
    return Control(network, guide, encode_pictures(vae, edges, model.config.latent_scale)[0])


def generate(model_path: str | Path, vae_path: str | Path, request: Request, text: str | Path | tuple[Encoded, Encoded],
             variant: str = "auto", bits: int = 8, dtype: torch.dtype | None = None,
             device: torch.device | str = "cpu", progress: Progress | None = None,
             control: tuple[str | Path, Guide] | None = None, loras: Sequence[tuple[str | Path, float]] = (),
             ) -> tuple[Tensor, list[PromptReport]]:
    """Pictures (B, 3, height, width) in 0..1, and a report a prompt on its tokens.

    text: the T5 encoder's file or folder, or the features of the prompts and of the negative prompt, encoded before.
    control: the file of a ControlNet, and what it shall follow. loras: files or folders, each at a strength. Encode, free T5, load the transformer, sample, free
    it, decode. Errors of every stage name the file and what to do.
    """
    from .checkpoint import load, read_config
    from .checkpoint.merged import with_loras
    from .vae import decode, load_vae

    def tell(stage: str, done: int, total: int) -> None:
        if progress is not None:
            progress(stage, done, total)

    config = read_config(model_path, variant)
    if isinstance(text, tuple):
        caption, null = text
    else:
        tell("text", 0, 1)
        caption, null = encode(text, request, config.caption_tokens, config.cleans_captions, bits, device)
        tell("text", 1, 1)
    check_captions(caption, request, config)
    model = with_loras(load(model_path, variant, dtype=dtype, device=device), loras)
    follow = control and load_guide(*control, load_vae(vae_path, device), model, request)
    latents = sample(model, request, caption, null, lambda step, x, x0: tell("sampling", step + 1, request.steps),
                     follow)
    del model, follow
    tell("decoding", 0, 1)
    pictures = decode(load_vae(vae_path, device), latents, config.latent_scale)
    tell("decoding", 1, 1)
    return pictures[:, :, :request.height, :request.width], caption.reports
