"""Networks with seeded random weights, built where they run, and inputs for them.

Weights are drawn with a standard deviation of 1 / sqrt(inputs), so that values stay in the range of 16-bit floats.
"""
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pixart.config import PixArtConfig
from pixart.model.controlnet import PixArtControlNet
from pixart.model.transformer import PixArtTransformer
from pixart.text.encoded import Encoded
from pixart.text.tokens import PromptReport

Network = TypeVar("Network", bound=nn.Module)
# Stable Diffusion's and SDXL's autoencoder.
KL: dict[str, Any] = {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 2,
      "block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32, "sample_size": 512,
      "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
TINY_KL = {**KL, "block_out_channels": [8, 8, 8, 8], "norm_num_groups": 4, "layers_per_block": 1}


def with_random_weights(model: Network, seed: int) -> Network:
    """In place: every weight and bias random, none zero; ready for use."""
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            fan_in = tensor[0].numel() if tensor.ndim > 1 and "table" not in name else 12
            tensor.normal_(0.0, fan_in ** -0.5, generator=generator)
    return model.eval().requires_grad_(False)


def transformer(config: PixArtConfig, dtype: torch.dtype, device: str, seed: int = 0, **further: Any
                ) -> PixArtTransformer:
    return with_random_weights(PixArtTransformer(config, dtype=dtype, device=device, **further), seed)


def controlnet(config: PixArtConfig, blocks: int, dtype: torch.dtype, device: str, seed: int = 1) -> PixArtControlNet:
    return with_random_weights(PixArtControlNet(config, blocks, dtype=dtype, device=device), seed)


def copied(model: nn.Module, like: Network) -> Network:
    """The weights of `model` in the data types and on the device of `like`, which is returned."""
    like.load_state_dict(model.state_dict())
    return like.eval().requires_grad_(False)


def autoencoder(tiny: bool, dtype: torch.dtype, device: str) -> Any:
    """diffusers' AutoencoderKL at full size with its own random initialisation. Raises Absent."""
    from .setting import need
    need("diffusers")
    from diffusers import AutoencoderKL
    torch.manual_seed(2)
    with torch.device(device):
        model: Any = AutoencoderKL(**(TINY_KL if tiny else KL))
    return model.to(dtype).eval().requires_grad_(False)


def given(config: PixArtConfig, sides: Sequence[int], lengths: Sequence[int], device: str = "cpu",
          dtype: torch.dtype = torch.float32, seed: int = 3) -> dict[str, Tensor]:
    """Arguments of the transformer for one image a length: latent sides (h, w), prompts of `lengths` tokens."""
    generator = torch.Generator().manual_seed(seed)
    count, longest = len(lengths), max(lengths)
    mask = torch.arange(longest)[None] < torch.tensor(list(lengths))[:, None]
    context = torch.randn(count, longest, config.caption_width, generator=generator) * mask[..., None]
    return {"latent": torch.randn(count, config.channels, *sides, generator=generator).to(device, dtype),
            "timestep": torch.linspace(900, 100, count).to(device), "context": context.to(device, dtype),
            "mask": mask.to(device), "size": torch.tensor([[8.0 * side for side in sides]] * count).to(device),
            "aspect": torch.full((count,), sides[0] / sides[1]).to(device)}


def as_passed(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same arguments as the library passes them: no mask where no prompt is padded, for a faster attention."""
    return {name: value for name, value in inputs.items() if name != "mask" or not bool(value.all())}


def row(inputs: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    """One image of them alone, its prompt without padding."""
    length = int(inputs["mask"][index].sum())
    alone = {name: value[index:index + 1] for name, value in inputs.items()}
    return {**alone, "context": alone["context"][:, :length], "mask": alone["mask"][:, :length]}


def encoded(config: PixArtConfig, lengths: Sequence[int], seed: int = 4) -> Encoded:
    """Random text features as the text encoder gives them."""
    inputs = given(config, (2, 2), lengths, seed=seed)
    reports = [PromptReport("", "", length, length, config.caption_tokens) for length in lengths]
    return Encoded(inputs["context"], inputs["mask"], reports, "random")


def distance(found: Tensor, wanted: Tensor) -> float:
    """|found - wanted| / |wanted| in float64 on the CPU; NaN where either is not finite."""
    found, wanted = found.detach().double().cpu(), wanted.detach().double().cpu()
    if not (torch.isfinite(found).all() and torch.isfinite(wanted).all()):
        return float("nan")
    return ((found - wanted).norm() / wanted.norm().clamp(min=1e-30)).item()
