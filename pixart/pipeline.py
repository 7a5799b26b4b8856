"""Prompt in, picture out, without ComfyUI: the parts of the library wired together.

Two stages, so that the text encoder and the transformer are never in memory at the same time.
"""
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from .control.pictures import fit
from .drawing import Control, Guide, Request, check_captions, sample
from .model.transformer import PixArtTransformer
from .sampling.samplers import SAMPLERS
from .text.encoded import Encoded
from .text.tokens import PromptReport

logger = logging.getLogger(__name__)

__all__ = ["SAMPLERS", "Control", "Guide", "Progress", "Request", "check_captions", "encode", "generate", "sample"]

Progress = Callable[[str, int, int], None]       # (stage, done, total); may raise to stop


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
    control: the file of a ControlNet, and what it shall follow. loras: files or folders, each at a
    strength. Encode, free T5, load the transformer, sample, free it, decode. Errors name the file and what to do.
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
