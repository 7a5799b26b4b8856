"""Alignment of a network's inner features with those of a frozen one that sees the image (REPA, arXiv 2410.06940).

A block in the first half of the transformer learns to predict, from the noisy image, what a vision network gives for
the clean one. As in iREPA (arXiv 2512.10794) a convolution takes the tokens to the other network's channels, and what
all places of an image share is taken out of the target, since its spatial structure is what helps. It helps early: it
can end before the training does (HASTE, arXiv 2505.16792).

Shapes: B images, N = h * w image tokens, D width, C channels of the frozen network.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..model.policy import Pass, Policy, Run
from ..model.transformer import PixArtTransformer
from .data import Batch
from .draws import StepGenerator
from .objectives import Diffusion

FEATURE_NETWORKS = ("none", "judge", "dinov2")
LEAST_VARIANCE = 1e-6              # beside the variance over the places of an image


@dataclass(frozen=True)
class Alignment:
    """With what, where and how long."""

    network: str = "none"         # frozen network: none; dinov2 (DINOv2 or 3); judge (judge A of PixArt-mini)
    block: int | None = None      # block whose output is compared, from 0; none: a quarter of the depth (7 of 28)
    weight: float = 0.5           # weight of 1 - cosine similarity, added to the diffusion loss
    steps: int | None = None      # align during the first N steps; none: all. Two fifths are usual
    dinov2: Path | None = None    # folder with config.json and model.safetensors, for network = dinov2
    vae: Path | None = None       # VAE that decodes the prepared latents; none: PixArt-mini's, for its models

    def __post_init__(self) -> None:
        if self.network not in FEATURE_NETWORKS:
            raise ValueError(f"align.network is {self.network!r}; use {', '.join(FEATURE_NETWORKS)}")
        if not self.weight > 0 or (self.steps is not None and self.steps < 1):
            raise ValueError(f"align.weight is {self.weight}, align.steps {self.steps}; expected above 0, and at least "
                             "1. network = none switches the alignment off")
        if (self.dinov2 is not None) != (self.network == "dinov2"):
            raise ValueError(f"align.network is {self.network}, align.dinov2 {self.dinov2}; the folder belongs to "
                             "network = dinov2, and to no other")

    def block_of(self, depth: int) -> int:
        """The block of a network of so many. ValueError where it has none of this number."""
        block = depth // 4 if self.block is None else self.block
        if not 0 <= block < depth:
            raise ValueError(f"align.block is {block}; this model has blocks 0 to {depth - 1}")
        return block

    def holds(self, generator: torch.Generator) -> bool:
        """Whether the step that draws from `generator` is one of those that align."""
        return self.steps is None or not isinstance(generator, StepGenerator) or generator.step < self.steps


class Tap(Policy):
    """Changes nothing, and keeps the output of one block of a pass."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.tokens: Tensor | None = None
        self.grid = (0, 0)

    def block(self, index: int, p: Pass, go: Run) -> Tensor:
        x = go(p)
        if index == self.index:
            self.tokens, self.grid = x, p.grid
        return x


class Aligned(nn.Module):
    """A network with the head that shows a block's tokens as maps; the head is trained with it and thrown away."""

    def __init__(self, network: PixArtTransformer, channels: int, block: int, seed: int = 0) -> None:
        """channels: C, of the frozen network's features. seed: of the head's first weights."""
        super().__init__()
        self.network, self.block, self.config = network, block, network.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = nn.Conv2d(network.config.hidden, channels, 3, padding=1)

    def forward(self, latent: Tensor, timestep: Tensor, context: Tensor, mask: Tensor | None = None,
                size: Tensor | None = None, aspect: Tensor | None = None,
                learned_variance: bool = False) -> tuple[Tensor, Tensor]:
        """What PixArtTransformer.forward gives, and the maps (B, C, h, w)."""
        tap = Tap(self.block)
        output = self.network(latent, timestep, context, mask, size, aspect, policies=[tap],
                              learned_variance=learned_variance)
        assert tap.tokens is not None
        return output, self.head(tap.tokens.transpose(1, 2).unflatten(2, tap.grid))


@dataclass(frozen=True, kw_only=True)
class AlignedDiffusion(Diffusion):
    """The diffusion loss of an `Aligned` network, plus weight * (1 - cosine similarity) of its maps and the features.

    features: latents (B, channels, H, W) and a grid (h, w) -> maps (B, C, h, w) of the frozen network.
    """

    features: nn.Module
    align: Alignment

    def __call__(self, model: nn.Module, average: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        noised = self.noised(batch, generator)
        output, maps = model(*noised.inputs, **noised.batch.conditions(), learned_variance=True)
        loss = self.loss_of(output, noised)
        if not self.align.holds(generator):
            return loss + 0 * maps.sum()        # distributed training wants a gradient, if zero, for every weight
        with torch.no_grad():
            target = self.features(batch.latents, maps.shape[-2:])
        return loss + self.align.weight * misalignment(maps, target)


def misalignment(maps: Tensor, target: Tensor) -> Tensor:
    """Scalar 0..2: 1 - cosine similarity at each place, (B, C, h, w) both, `target` normalised over places first."""
    return 1 - F.cosine_similarity(maps.float(), normalised_over_places(target.float()), dim=1).mean()


def normalised_over_places(maps: Tensor) -> Tensor:
    """(B, C, h, w): every channel of every image with mean 0 and variance 1 over its places."""
    mean, variance = maps.mean((2, 3), keepdim=True), maps.var((2, 3), correction=0, keepdim=True)
    return (maps - mean) / (variance + LEAST_VARIANCE).sqrt()


def on_grid(maps: Tensor, grid: Sequence[int]) -> Tensor:
    """Maps (B, C, ., .) -> (B, C, h, w), averaged where there are more places, interpolated where there are fewer."""
    return maps if maps.shape[-2:] == tuple(grid) else F.interpolate(maps, tuple(grid), mode="bilinear",
                                                                     align_corners=False, antialias=True)
