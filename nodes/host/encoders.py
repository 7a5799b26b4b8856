"""The host's CLIP and VAE as the networks that `pixart.prepare` asks for."""
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...pixart.prepare.captions import half
from ...pixart.prepare.networks import Networks
from ...pixart.text.encoded import Encoded, join_encoded
from .text import HostTextEncoder, Rules, encode_prompt

LEADING = 16            # values of every tensor that go into a digest: all of them would take seconds


class ClipEncoder:
    """Captions through a CLIP, our own or the host's. What it returns may be used outside of inference mode."""

    def __init__(self, clip: Any) -> None:
        self.clip = clip

    def encode(self, prompts: list[str], max_tokens: int, clean: bool, batch: int = 1) -> Encoded:
        """One at a time: the host pads a batch, and its own T5 takes no mask."""
        return join_encoded([self._one(prompt, Rules(clean, max_tokens)) for prompt in prompts])

    def _one(self, prompt: str, rules: Rules) -> Encoded:
        with running():
            conditioning, report = encode_prompt(self.clip, prompt, rules, {})
        context = conditioning[0][0].to("cpu", torch.float32).clone()
        mask = conditioning[0][1].get("attention_mask")
        keep = torch.ones(context.shape[:2], dtype=torch.bool) if mask is None else mask.to("cpu") != 0
        return Encoded(context, keep.clone(), [report])

    def close(self) -> None:
        """The host frees its own models when it wants the memory."""


class VaeEncoder:
    """Images through a VAE: the mean of its posterior, scaled as the MODEL wants it, without a standard deviation."""

    tiny = True

    def __init__(self, vae: Any, model: Any) -> None:
        self.vae, self.scaled = vae, model.model.latent_format.process_in

    def __call__(self, images: Tensor) -> tuple[Tensor, None]:
        with running():
            latents = self.scaled(self.vae.encode(images.movedim(1, -1)))
        return half(latents, "the VAE").clone(), None


def vae_decoder(vae: Any, model: Any) -> Callable[[Tensor], Tensor]:
    """Latents (B, C, h, w) as the transformer sees them -> images (B, 3, H, W) in 0..1 on the CPU."""
    unscaled = model.model.latent_format.process_out

    def decode(latents: Tensor) -> Tensor:
        with running():
            images = vae.decode(unscaled(latents))
        return images.movedim(-1, 1).float().clamp(0, 1).to("cpu")
    return decode


@contextmanager
def running() -> Iterator[None]:
    """As in a node of its own, except that an interruption is a KeyboardInterrupt, which `pixart` knows."""
    from comfy.model_management import InterruptProcessingException
    try:
        with torch.inference_mode():
            yield
    except InterruptProcessingException as error:
        raise KeyboardInterrupt from error


def networks_of(clip: Any, vae: Any, model: Any) -> Networks:
    """For `pixart.prepare`; either may be None."""
    facts = {"T5": clip and clip_digest(clip), "VAE": vae and network_digest(vae.first_stage_model)}
    return Networks((lambda: ClipEncoder(clip)) if clip else None,
                    (lambda: VaeEncoder(vae, model)) if vae else None, facts)


def clip_digest(clip: Any) -> str:
    network = clip.cond_stage_model
    if isinstance(network, HostTextEncoder):
        return f"{network.identity}, {network.bits} bits"
    return network_digest(network)


def network_digest(network: nn.Module) -> str:
    """Short, of the first values of every tensor; the same wherever and however often the network is loaded."""
    found = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.flatten()[:LEADING].float().tolist()}".encode())
    return found.hexdigest()[:12]
