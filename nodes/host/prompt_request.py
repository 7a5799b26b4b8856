"""Prompts as they go through the host in place of token ids, and how they were treated in training."""
from collections.abc import Mapping
from typing import Any, NamedTuple

from ...pixart.prepare.families import FAMILIES

T5_KEY = "pixart_t5"           # in the token dictionary, where the host's own T5 has HOST_KEY
# Text encoders by the host's names for them, and what loads a CLIP that has them.
ENCODER_TITLES = {"t5xxl": "T5-XXL beside CLIP-L", "l": "CLIP-L", "g": "CLIP-G", "h": "CLIP-H", "mt5xl": "mT5-XL",
                  "hydit_clip": "the BERT of HunyuanDiT", "llama": "Llama"}
LOADED_BY = {
    "t5xxl": "For Flux and SD3 load it with the stock DualCLIPLoader (type flux or sd3).",
    "l": "For SD3 and SDXL load it with the stock DualCLIPLoader (type sd3 or sdxl).",
    "g": "For SDXL load it with the stock DualCLIPLoader (type sdxl).",
    "mt5xl": "For HunyuanDiT it comes with the checkpoint: use the stock Load Checkpoint.",
    "llama": "For HunyuanVideo and HiDream load it with the stock DualCLIPLoader or QuadrupleCLIPLoader.",
}


class Rules(NamedTuple):
    """How prompts were treated in training."""

    clean: bool
    limit: int                 # tokens, the end token included


PROMPT_RULES = {name: Rules(FAMILIES[name].clean, FAMILIES[name].tokens) for name in ("alpha", "sigma")}


class PromptRequest(NamedTuple):
    """What goes through the host in place of token ids."""

    text: str
    clean: bool = False
    limit: int = PROMPT_RULES["sigma"].limit
    emphasis: bool = True      # (word:1.2) and escapes are read; captions of images have brackets that are text


class Tokens(dict):
    """What `TextTokenizer` returns. Nodes that encode for another model ask it for the tokens of other encoders."""

    def __missing__(self, encoder: str) -> list:
        title = ENCODER_TITLES.get(encoder, encoder)
        raise ValueError(f"this node needs the CLIP of another model, with {title}; the CLIP of Load T5 is for PixArt. "
                         + LOADED_BY.get(encoder, "Load it with the stock CLIPLoader."))


class TextTokenizer:
    """Stands where the host expects a tokenizer; the encoder behind it takes text."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: dict | None = None) -> None:
        pass

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, pixart: PromptRequest | None = None,
                              disable_weights: bool = False, **_: object) -> Tokens:
        return Tokens({T5_KEY: [[(pixart or PromptRequest(text, emphasis=not disable_weights), 1.0)]]})

    def untokenize(self, token_weight_pair: list) -> list:
        return [(pair, pair[0].text) for pair in token_weight_pair]

    def state_dict(self) -> dict:
        return {}


def requests_of(tokens: Mapping[str, list]) -> list[PromptRequest]:
    """The requests in the tokens that a `TextTokenizer` made. ValueError for others."""
    requests = [entry[0] for section in tokens.get(T5_KEY, ()) for entry in section]
    if not requests or not all(isinstance(request, PromptRequest) for request in requests):
        raise ValueError(f"these tokens are of another text encoder ({', '.join(tokens)}); tokenize with this CLIP")
    return requests
