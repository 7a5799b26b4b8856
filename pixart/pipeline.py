"""Prompt in, picture out, without ComfyUI: the parts of the library wired together.

Two stages, so that the text encoder and the transformer are never in memory at the same time.
"""
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .config import PixArtConfig
from .model.transformer import PixArtTransformer
from .sampling.dmd import dmd
from .sampling.dpm_solver import dpm_solver_pp
from .sampling.guidance import guided
from .sampling.lcm import lcm, lcm_timesteps
from .sampling.noise import PictureNoise
from .sampling.schedule import Callback
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
           callback: Callback | None = None) -> Tensor:
    """Latents (B, 4, H / 8, W / 8), scaled as the transformer sees them, on the model's device."""
    weight = model.x_embedder.proj.weight
    count, (h, w) = len(request.prompts), request.latent_shape
    context, mask = stack_captions(null, caption) if request.guided else (caption.context, caption.mask)
    context, mask = context.to(weight.device, weight.dtype), mask.to(weight.device)
    size = torch.tensor([[request.height, request.width]] * len(mask), dtype=torch.float32, device=weight.device)

    def network(x: Tensor, t: Tensor) -> Tensor:
        return model(x.to(weight.dtype), t, context, mask, size, size[:, 0] / size[:, 1]).float()

    noise = PictureNoise([request.seed + i for i in range(count)], (model.config.channels, h, w), weight.device)
    if request.sampler == "dmd":
        return dmd(network, noise(), callback)
    if request.sampler == "lcm":
        return lcm(network, noise(), lcm_timesteps(request.steps, request.rule), noise, callback)
    return dpm_solver_pp(guided(network, request.guidance) if request.guided else network, noise(), request.steps,
                         request.rule, callback)


def generate(model_path: str | Path, vae_path: str | Path, request: Request, text: str | Path | tuple[Encoded, Encoded],
             variant: str = "auto", bits: int = 8, dtype: torch.dtype | None = None,
             device: torch.device | str = "cpu", progress: Progress | None = None) -> tuple[Tensor, list[PromptReport]]:
    """Pictures (B, 3, height, width) in 0..1, and a report a prompt on its tokens.

    text: the T5 encoder's file or folder, or the features of the prompts and of the negative prompt, encoded
    before. Encode, free T5, load the transformer, sample, free it, decode. Errors of every stage name the file and
    what to do.
    """
    from .checkpoint import load, read_config
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
    model = load(model_path, variant, dtype=dtype, device=device)
    latents = sample(model, request, caption, null, lambda step, x, x0: tell("sampling", step + 1, request.steps))
    del model
    tell("decoding", 0, 1)
    pictures = decode(load_vae(vae_path, device), latents, config.latent_scale)
    tell("decoding", 1, 1)
    return pictures[:, :, :request.height, :request.width], caption.reports
