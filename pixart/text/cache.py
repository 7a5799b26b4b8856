"""A cache of encoded prompts, so that an unchanged prompt never runs the text encoder twice."""
from collections import OrderedDict

from .encoded import Encoded, join_encoded
from .quantized import Bits
from .t5 import T5Encoder
from .tokens import check_request

_Key = tuple[str, Bits, int, bool, bool, str]


class EmbeddingCache:
    """Keeps the last `entries` encoded prompts on the CPU (a 300-token prompt of T5-XXL takes 4.9 MB).

    The key is the encoder's identity, bits, token limit, cleaning, emphasis and the prompt as written, which its report
    quotes. So an entry outlives the encoder object: after the encoder was closed, or loaded again, the same prompt
    costs nothing.
    """

    def __init__(self, entries: int = 32) -> None:
        if entries < 1:
            raise ValueError(f"a cache needs room for at least 1 prompt, got {entries}")
        self.entries = entries
        self.hits = 0
        self.misses = 0
        self._kept: OrderedDict[_Key, Encoded] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        self._kept.clear()

    def find(self, identity: str, bits: Bits, prompts: list[str], max_tokens: int,
             clean: bool = False, emphasis: bool = False) -> Encoded | None:
        """All prompts when every one is kept, else None; `identity` as `encoder_identity(path)` gives it."""
        check_request(prompts, max_tokens)
        keys = _keys(identity, bits, prompts, max_tokens, clean, emphasis)
        if any(key not in self._kept for key in keys):
            return None
        self.hits += len(keys)
        return self._collect(keys, {key: self._kept[key] for key in keys})

    def encode(self, encoder: T5Encoder, prompts: list[str], max_tokens: int, clean: bool = False,
               emphasis: bool = False) -> Encoded:
        """As `encoder.encode`, running it only for prompts that are not kept. Results are copies."""
        check_request(prompts, max_tokens)
        keys = _keys(encoder.identity, encoder.bits, prompts, max_tokens, clean, emphasis)
        missing = {key: prompt for key, prompt in zip(keys, prompts) if key not in self._kept}
        self.misses += len(missing)
        self.hits += len(prompts) - len(missing)
        found = {key: self._kept[key] for key in keys if key in self._kept}
        if missing:
            fresh = encoder.encode(list(missing.values()), max_tokens, clean, emphasis=emphasis)
            found.update((key, fresh.one(row)) for row, key in enumerate(missing))
        return self._collect(keys, found)

    def _collect(self, keys: list[_Key], found: dict[_Key, Encoded]) -> Encoded:
        for key in keys:
            self._keep(key, found[key])
        return join_encoded([found[key] for key in keys])

    def _keep(self, key: _Key, encoded: Encoded) -> None:
        self._kept[key] = encoded
        self._kept.move_to_end(key)
        while len(self._kept) > self.entries:
            self._kept.popitem(last=False)


def _keys(identity: str, bits: Bits, prompts: list[str], max_tokens: int, clean: bool, emphasis: bool) -> list[_Key]:
    return [(identity, bits, max_tokens, clean, emphasis, prompt) for prompt in prompts]
