"""Starting weights of a PixArt transformer that is trained from scratch."""
from collections.abc import Iterable
from typing import cast

import torch
from torch import nn

from ..model.block import PixArtBlock
from ..model.transformer import PixArtTransformer
from ..pt_dit.block import PTDiTBlock
from ..pt_dit.transformer import PTDiT


@torch.no_grad()
def initialize_block(block: PixArtBlock, seed: int) -> PixArtBlock:
    """Xavier for a block by itself, its table as in a whole model; every branch acts from the start. In place."""
    generator = torch.Generator().manual_seed(seed)
    for module in block.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            nn.init.zeros_(module.bias)
    begin_as_mean(block)
    table = block.scale_shift_table.weight
    nn.init.normal_(table, std=table.shape[1] ** -0.5, generator=generator)
    return block


def begin_as_mean(block: PixArtBlock) -> None:
    """A convolution that compresses keys and values starts as the mean of what it joins (PixArt-Sigma, section 3.2)."""
    if hasattr(block.attn, "sr"):
        nn.init.constant_(block.attn.sr.weight, 1 / block.attn.sr.kernel_size[0] ** 2)
        nn.init.zeros_(block.attn.sr.bias)


def xavier(model: nn.Module, generator: torch.Generator) -> None:
    """All linear layers and the patch embedding, their biases zero."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1), generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def narrow(parts: Iterable[nn.Module], generator: torch.Generator) -> None:
    """N(0, 0.02) for the linear layers of what conditions the blocks."""
    for part in parts:
        for module in part.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02, generator=generator)


@torch.no_grad()
def initialize(model: PixArtTransformer, seed: int) -> PixArtTransformer:
    """Xavier for the blocks, N(0, 0.02) for the conditioning MLPs, zero for what is not to act at first. In place."""
    generator = torch.Generator().manual_seed(seed)
    xavier(model, generator)
    conditioning = [model.t_embedder, model.t_block, model.y_embedder.y_proj]
    if model.config.micro_conditioning:
        conditioning += [model.csize_embedder, model.ar_embedder]
    narrow(conditioning, generator)
    for block in cast(Iterable[PixArtBlock], model.blocks):
        nn.init.zeros_(block.cross_attn.proj.weight)
        begin_as_mean(block)
        nn.init.normal_(block.scale_shift_table.weight, std=model.config.hidden ** -0.5, generator=generator)
    nn.init.normal_(model.final_layer.scale_shift_table.weight, std=model.config.hidden ** -0.5, generator=generator)
    nn.init.zeros_(model.final_layer.linear.weight)
    return model


@torch.no_grad()
def initialize_pt_dit(model: PTDiT, seed: int) -> PTDiT:
    """As a PixArt's; proxies and shifted windows do not act at the start either. In place."""
    generator = torch.Generator().manual_seed(seed)
    xavier(model, generator)
    narrow((model.t_embedder, model.t_block, model.y_proj), generator)
    std = model.config.hidden ** -0.5
    for block in cast(Iterable[PTDiTBlock], model.blocks):
        silent = [block.cross_attn.proj, block.visual_linear, *([block.shifted_linear] if block.shifted else [])]
        for layer in silent:
            nn.init.zeros_(layer.weight)
        tables = [block.scale_shift_table, *([block.shifted_scale_shift_table] if block.shifted else [])]
        for table in tables:
            nn.init.normal_(table.weight, std=std, generator=generator)
    nn.init.normal_(model.final_layer.scale_shift_table.weight, std=std, generator=generator)
    nn.init.zeros_(model.final_layer.linear.weight)
    return model
