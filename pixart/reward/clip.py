"""CLIP, PickScore and HPSv2: one architecture, three trainings, two scales of the score."""
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..text.segments import split_segments
from .clip_files import open_clip_network
from .embedding import EmbeddingReward, mean_of_segments
from .eyes import clip_normalised, middle_square, whole_in_square

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class ClipReward(EmbeddingReward):
    """Agreement of prompt and image by a CLIP network.

    The score is the cosine, times the network's own scale (about 100) where `scaled`. `whole`: show it the whole
    image in a black frame instead of the middle square. Prompts longer than the network reads (77 tokens) are cut and
    the cut is logged, or with `segments` read sentence by sentence and averaged.
    """

    def __init__(self, name: str, network: nn.Module, tokenizer: "PreTrainedTokenizerBase", scaled: bool,
                 whole: bool = False, segments: bool = False) -> None:
        super().__init__()
        self.name, self.scaled, self.segments = name, scaled, segments
        self.fit = whole_in_square if whole else middle_square
        self.network, self.tokenizer = network.eval().requires_grad_(False), tokenizer
        config: Any = network.config
        self.side: int = config.vision_config.image_size
        self.longest: int = config.text_config.max_position_embeddings

    @classmethod
    def open(cls, name: str, path: str | Path, tokenizer: str | Path | None = None, scaled: bool = True,
             whole: bool = False, segments: bool = False) -> "ClipReward":
        """From a Hugging Face folder, or a file in open_clip's or transformers' names.

        tokenizer: folder with vocab.json and merges.txt (or tokenizer.json), for weights that lie without one.
        """
        network, words = open_clip_network(Path(path), None if tokenizer is None else Path(tokenizer))
        return cls(name, network, words, scaled, whole, segments)

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        if not self.segments:
            return self._sentences(prompts)
        parts = [split_segments(prompt) for prompt in prompts]
        return mean_of_segments(self._sentences([segment for part in parts for segment in part]), list(map(len, parts)))

    def looks(self, images: Tensor) -> Tensor:
        network: Any = self.network
        weight = network.visual_projection.weight
        shown = clip_normalised(self.fit(images.float().to(weight.device), self.side)).to(weight.dtype)
        return F.normalize(network.visual_projection(network.vision_model(shown).pooler_output).float(), dim=-1)

    def scale(self) -> float | Tensor:
        network: Any = self.network
        return network.logit_scale.float().exp() if self.scaled else 1.0

    def _sentences(self, texts: Sequence[str]) -> Tensor:
        """Normalised embeddings (n, D). A text is read at its last token, so what follows that does not matter."""
        network: Any = self.network
        rows = [self._ids(text) for text in texts]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for row, found in zip(ids, rows):
            row[:len(found)] = torch.tensor(found)
        device = network.text_projection.weight.device
        states = network.text_model(ids.to(device)).last_hidden_state
        ends = torch.tensor([len(row) - 1 for row in rows], device=device)
        pooled = states[torch.arange(len(rows), device=device), ends]
        return F.normalize(network.text_projection(pooled).float(), dim=-1)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = list(self.tokenizer(text, truncation=False, verbose=False)["input_ids"])
        if len(ids) > self.longest:
            logger.warning("%s reads %d tokens, a prompt has %d; it is scored by its beginning", self.name,
                           self.longest, len(ids))
            ids = ids[:self.longest - 1] + ids[-1:]
        return ids
