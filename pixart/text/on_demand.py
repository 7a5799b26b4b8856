"""A T5 encoder that is read when a prompt needs it, and freed where memory is short."""
import logging
from collections.abc import Callable
from pathlib import Path

import torch

from ..device import free_bytes
from .cache import EmbeddingCache
from .encoded import Encoded
from .fitting import fit_t5
from .quantized import Bits
from .t5 import T5Encoder, encoder_identity, require_t5

logger = logging.getLogger(__name__)

REMEMBERED = 64         # prompts; one of 300 tokens of T5-XXL takes 4.9 MB


class T5OnDemand:
    """Encodes prompts as T5Encoder does, and caches the last ones, which need no weights again."""

    def __init__(self, path: str | Path, bits: Bits, device: torch.device) -> None:
        """bits "auto" is resolved now, by the device's free memory; see `fit_t5`. Raises as T5Encoder for files."""
        require_t5(path)
        found = fit_t5(path, bits, device)
        self.path, self.bits, self.device = Path(path), found.bits, found.device
        if found.words:
            logger.warning(found.words)
        self.encoder: T5Encoder | None = None
        self._features = EmbeddingCache(REMEMBERED)
        self._identity: str | None = None

    def encode(self, prompts: list[str], max_tokens: int, clean: bool,
               reading: Callable[[int, int], None] | None = None) -> Encoded:
        """As T5Encoder.encode; reading(done, total) is called while the weights are read, and may raise to stop."""
        if self.encoder is None:
            self._identity = self._identity or encoder_identity(self.path)
            known = self._features.find(self._identity, self.bits, prompts, max_tokens, clean)
            if known is not None:
                return known
            self.encoder = T5Encoder(self.path, self.bits, self.device, progress=reading)
        return self._features.encode(self.encoder, prompts, max_tokens, clean)

    def make_room(self, keep: bool | None) -> None:
        """Free the weights unless `keep`; None keeps them while at least their size of memory is free."""
        if self.encoder is None or keep:
            return
        free = free_bytes(self.device)
        if keep is None and free is not None and free >= encoder_bytes(self.encoder):
            return
        self.encoder.close()
        self.encoder = None


def encoder_bytes(encoder: T5Encoder) -> int:
    """Bytes of its weights."""
    if encoder.model is None:
        return 0
    return sum(tensor.nbytes for tensor in (*encoder.model.parameters(), *encoder.model.buffers()))
