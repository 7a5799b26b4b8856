"""What every method is given: the prompts, their text features, the decoder, the initial noise."""
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...checkpoint import read_config
from ...generation.request import Request
from ...text.encoded import Encoded
from ...text.t5 import T5Encoder
from .. import Files
from ..autoencoder import MiniAutoencoder, load_autoencoder
from .batches import BenchImages, to_bytes
from .prompts import PromptGroup, Prompts


@dataclass(frozen=True)
class Bench:
    """Held-out prompts, encoded once, with the networks that all methods share."""

    prompts: Prompts
    files: Files
    vae: MiniAutoencoder
    captions: Encoded            # of all prompts
    null: Encoded                # of the empty prompt
    device: torch.device
    batch: int = 100             # images at a time

    @classmethod
    def open(cls, files: Files, count: int = 1000, seed: int = 7, crowded: bool = False,
             device: torch.device | str = "cpu", batch: int = 100) -> "Bench":
        """Reads text encoder and autoencoder of `files`, encodes `count` prompts. Raises what reading them raises."""
        if batch < 1:
            raise ValueError(f"{batch} images at a time asked for; at least 1 is needed")
        prompts, device = Prompts.held_out(count, seed, crowded), torch.device(device)
        config, encoder = read_config(files.teacher), T5Encoder(files.t5, bits=16, device=device)
        limit, cleans = config.caption_tokens, config.cleans_captions        # as the pipeline does
        captions = encoder.encode(prompts.captions, limit, cleans, batch)
        null = encoder.encode([""], limit, cleans)
        encoder.close()
        return cls(prompts, files, load_autoencoder(files.vae).to(device), captions, null, device, batch)

    def first(self, count: int) -> "Bench":
        """The first `count` prompts, with the same noise."""
        return replace(self, prompts=self.prompts.first(count))

    def again(self, run: int) -> "Bench":
        """The same prompts with other noise; run 0 is the noise of all measurements."""
        return replace(self, prompts=replace(self.prompts, run=run))

    def request(self, group: PromptGroup, sampler: str, steps: int, guidance: float) -> Request:
        """The request to a `Pipeline` for a group."""
        texts = tuple(self.prompts.captions[i] for i in group.members)
        return Request(texts, height=group.height, width=group.width, seed=group.seed, sampler=sampler, steps=steps,
                       guidance=guidance)

    def text(self, group: PromptGroup) -> Encoded:
        """Text features of a group, without the padding that none of its prompts needs."""
        rows = slice(group.members.start, group.members.stop, group.members.step)
        mask = self.captions.mask[rows]
        longest = int(mask.sum(1).max())
        return Encoded(self.captions.context[rows, :longest], mask[:, :longest], self.captions.reports[rows])

    def generate_groups(self, sample: Callable[[PromptGroup], Tensor]) -> BenchImages:
        """The images of all prompts. sample(group) -> scaled latents (B, 4, h, w)."""
        parts: dict[tuple[int, int], list[Tensor]] = {}
        for group in self.prompts.groups(self.batch):
            parts.setdefault((group.height, group.width), []).append(self.decode(sample(group)))
        return BenchImages(tuple(torch.cat(part) for part in parts.values()))

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, 4, h, w) -> images, uint8 (B, 3, 8h, 8w)."""
        return torch.cat([to_bytes(self.vae.decode(part.float())) for part in latents.split(self.batch)])
