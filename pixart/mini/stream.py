"""Training data without end: scenes rendered, encoded and captioned on the training device, every image afresh.

It takes the place of a prepared folder. Whatever a batch holds follows from its generator alone.
"""
import torch
from torch import Tensor, nn

from ..control.edges import canny
from ..train.data import Batch, without_caption
from ..train.draws import StepGenerator
from .autoencoder import MiniAutoencoder
from .images import CANNY
from .scenery import RenderedBatch, Scenery, Worded


class EndlessData:
    """What the trainers read, rendered and encoded as they go. Attributes and methods as of `PreparedFolder`."""

    latent_space, edges = "sd", "canny"

    def __init__(self, scenery: Scenery, vae: MiniAutoencoder, encoder: nn.Module, caption_tokens: int,
                 hints: bool = False, autocast: bool = False, reuse: int = 1, images: bool = True) -> None:
        """vae and encoder are on the device of the scenery. hints: edge maps too; autocast: encode in bf16; reuse:
        steps in a row that see the same images, with other noise, where rendering them takes much of a step. images:
        whether there are any; without, latents have no channels, for trainings that learn from captions alone."""
        self.scenery, self.vae, self.encoder = scenery, vae.eval(), encoder.eval()
        self.hints, self.autocast, self.caption_tokens, self.reuse = hints, autocast, caption_tokens, reuse
        self.images = images
        self._seed = -1                                  # of the images that are kept
        self._kept: dict[tuple[int, int | None], Batch] = {}     # by their number and where in the step they begin
        self.device = scenery.ordinary.codes.device
        self.remembered: dict[int, Tensor] = {}          # features of all captions, by catalogue
        with torch.no_grad():
            self.null_context = self.features(torch.ones(1, 1, dtype=torch.long, device=self.device))[0]
        self.null_mask = torch.ones(1, dtype=torch.bool, device=self.device)
        self.caption_width = self.null_context.shape[1]
        self.folder = "the scenes of PixArt-mini"

    def features(self, tokens: Tensor) -> Tensor:
        """tokens (B, L) -> (B, L, C) float32, zero at padding."""
        mask = tokens > 0
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            found = self.encoder(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        return found.float() * mask[..., None]

    @torch.no_grad()
    def remember(self, batch: int = 1000) -> None:
        """Encode all captions once and keep the features, in 16 bits: 5 kB a sentence, 65 kB a paragraph."""
        for kind in (self.scenery.ordinary, self.scenery.crowded):
            if kind is not None:
                parts = [self.features(rows.long()).to(torch.bfloat16) for rows in kind.tokens.split(batch)]
                self.remembered[id(kind)] = torch.cat(parts)

    def context(self, some: RenderedBatch | Worded) -> Tensor:
        """(B, L, C) float32, zero at padding: the features of the captions."""
        kept = self.remembered.get(id(some.kind))
        return self.features(some.tokens) if kept is None else kept[some.rows].float()

    @torch.no_grad()
    def batch(self, generator: torch.Generator, size: int) -> Batch:
        """`size` images of one bucket and kind."""
        if not self.images:
            return self._worded(generator, size)
        if self.reuse == 1:
            return self._made(generator, size)
        seed = generator.initial_seed() // self.reuse
        if seed != self._seed:
            self._seed, self._kept = seed, {}
        part = size, getattr(generator, "rows", slice(None)).start
        if part not in self._kept:
            self._kept[part] = self._made(reseeded(generator, seed), size)
        return self._kept[part]

    def _made(self, generator: torch.Generator, size: int) -> Batch:
        rendered = self.scenery.render(generator, size)
        height, width = rendered.images.shape[-2:]
        hints = None
        if self.hints:
            maps = canny(rendered.images, CANNY["low"], CANNY["high"], together=True)
            hints = self.latents(maps.expand(-1, 3, -1, -1))
        return Batch(self.latents(rendered.images), self.context(rendered), rendered.mask,
                     *self._told((height, width), size), hints)

    def _worded(self, generator: torch.Generator, count: int) -> Batch:
        """Captions and shapes alone."""
        worded = self.scenery.captions(generator, count)
        height, width = worded.size
        latents = torch.zeros(count, 0, height // 8, width // 8, device=self.device)
        return Batch(latents, self.context(worded), worded.mask, *self._told(worded.size, count))

    def _told(self, shape: tuple[int, int], count: int) -> tuple[Tensor, Tensor]:
        """Size (B, 2) and aspect (B,) of images of this height and width."""
        size = torch.stack([torch.full((count,), float(side), device=self.device) for side in shape], 1)
        return size, torch.full((count,), shape[0] / shape[1], device=self.device)

    def latents(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> raw latents (B, 4, H / 8, W / 8)."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            return self.vae.encode(images.contiguous(memory_format=torch.channels_last)).float().contiguous()

    def without_caption(self, batch: Batch, rows: Tensor | None = None) -> Batch:
        """The batch with the null caption in the given rows (B,) bool, or in all of them."""
        return without_caption(batch, self.null_context, self.null_mask, rows)


def reseeded(generator: torch.Generator, seed: int) -> StepGenerator:
    """Another seed for the same rows of a step, on the same device."""
    other = StepGenerator(generator.device)
    other.manual_seed(seed)
    other.rows, other.total = getattr(generator, "rows", slice(None)), getattr(generator, "total", None)
    return other
