"""Captions in, latents out: a PT-DiT and the flow sampler, wired together."""
import torch
from torch import Tensor

from ..resolution import latent_sides
from ..sampling.flow import FLOW_GUIDANCE, FLOW_STEPS, euler_flow, flow_shares
from ..sampling.guidance import guided
from ..sampling.noise import ImageNoise
from ..sampling.schedule import Callback
from ..text.encoded import Encoded, stack_captions
from .transformer import PTDiT


@torch.inference_mode()
def sample_latents(model: PTDiT, caption: Encoded, null: Encoded, height: int | None = None, width: int | None = None,
                   steps: int = FLOW_STEPS, guidance: float = FLOW_GUIDANCE, seed: int = 0,
                   callback: Callback | None = None) -> Tensor:
    """Latents (B, C, height / 8, width / 8), scaled as the network sees them, on its device; sides rounded up.

    caption: the prompts, a row each; null: one row, what to avoid, not read where guidance is 1. height and width:
    pixels, by default those the model was trained on. Image i has the seed seed + i and does not depend on the
    others. Steps and guidance are by default those of the published model. ValueError for impossible ones.
    """
    weight, config = model.x_embedder.proj.weight, model.config
    height, width = height or config.resolution, width or config.resolution
    shape = (config.channels, *latent_sides(height, width))
    context, mask = (caption.context, caption.mask) if guidance == 1 else stack_captions(null, caption)
    keep = None if bool(mask.all()) else mask.to(weight.device)
    text = context.to(weight.device, weight.dtype)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return model(x.to(weight.dtype), t, text, keep).float()
    noise = ImageNoise([seed + i for i in range(len(caption.mask))], shape, weight.device)
    shares = flow_shares(steps, config.flow_shift(8 * shape[1], 8 * shape[2]))
    return euler_flow(velocity if guidance == 1 else guided(velocity, guidance), noise(), shares, callback)
