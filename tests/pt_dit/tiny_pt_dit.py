"""The smallest PT-DiTs: a configuration, random weights, inputs."""
from dataclasses import replace

import torch
from torch import Tensor, nn

from pixart.pt_dit.config import PTDiTConfig
from pixart.pt_dit.layout import published_pt_dit_shapes
from pixart.pt_dit.transformer import PTDiT

TINY = PTDiTConfig(depth=2, hidden=32, heads=4, caption_width=12, caption_tokens=8, base_size=8, window=4, proxy=4,
                   flow_side=128)
PUBLISHED = replace(TINY, window=8, proxy=8)        # what files of the published layout are taken for


def filled(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every weight random, so that nothing is multiplied away."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) / max(1, tensor[0].numel()) ** 0.5)
    return module.eval()


def model(config: PTDiTConfig = TINY, **options: object) -> PTDiT:
    return filled(PTDiT(config, **options)).requires_grad_(False)


def published_state(config: PTDiTConfig, seed: int = 3) -> dict[str, Tensor]:
    """Random weights under the names of the published file."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) / (shape[-1] if len(shape) > 1 else 8) ** 0.5
            for name, shape in published_pt_dit_shapes(config).items()}


def given(rows: int = 2, height: int = 16, width: int = 24, config: PTDiTConfig = TINY) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {"latent": torch.randn(rows, config.channels, height, width, generator=generator),
            "timestep": torch.linspace(900, 100, rows),
            "context": torch.randn(rows, 5, config.caption_width, generator=generator)}
