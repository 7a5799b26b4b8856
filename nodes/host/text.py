"""The T5 encoder as a CLIP of the host, and prompts encoded by it or by the host's own T5."""
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...pixart.text import EmbeddingCache, Encoded, PromptReport, T5Encoder, clean_caption
from .folders import tokenizer_folder

logger = logging.getLogger(__name__)

KEY = "pixart_t5"              # in the token dictionary; the host's own T5 uses "t5xxl"
HOST_KEY = "t5xxl"
BYTES_PER_WEIGHT = {16: 2.0, 8: 1.3, 4: 0.9}      # with the layers that stay in 16 bits
Conditioning = list[list]


class Rules(NamedTuple):
    """How prompts were treated in training."""

    clean: bool
    limit: int                 # tokens, the end token included


FAMILIES = {"alpha": Rules(True, 120), "sigma": Rules(False, 300)}


class Request(NamedTuple):
    """What goes through the host in place of token ids."""

    text: str
    clean: bool = False
    limit: int = FAMILIES["sigma"].limit


class TextTokenizer:
    """Stands where the host expects a tokenizer; the encoder behind it takes text."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: dict | None = None) -> None:
        pass

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, pixart: Request | None = None,
                              **_: object) -> dict[str, list]:
        return {KEY: [[(pixart or Request(text), 1.0)]]}

    def untokenize(self, token_weight_pair: list) -> list:
        return [(pair, pair[0].text) for pair in token_weight_pair]

    def state_dict(self) -> dict:
        return {}


class TextEncoder(torch.nn.Module):
    """Stands where the host expects a text encoder network.

    The weights are not parameters of this module: 8-bit layers must not be cast, patched or moved by the host. They
    stay on one device until the host wants its memory back, and come back when a new prompt needs them.
    """

    def __init__(self, load: Callable[[], T5Encoder], encoder: T5Encoder) -> None:
        super().__init__()
        self.dtypes = {torch.float32}
        self.load, self.encoder, self.cache = load, encoder, EmbeddingCache()
        self.width, self.identity, self.bits = encoder.width, encoder.identity, encoder.bits
        self.bytes = int(encoder.parameters * BYTES_PER_WEIGHT[encoder.bits])

    def encode(self, request: Request) -> Encoded:
        """context (1, L, C) float32 without padding. An unchanged prompt does not run the encoder again."""
        arguments = ([request.text], request.limit, request.clean)
        kept = self.cache.find(self.identity, self.bits, *arguments)
        if kept is not None:
            return kept
        if self.encoder.model is None:
            self.encoder = self.load()
        return self.cache.encode(self.encoder, *arguments)

    def release(self, *_: object) -> None:
        """Free the weights, on the host's request."""
        logger.info("T5 encoder %s leaves memory", self.encoder.path)
        self.encoder.close()

    def encode_token_weights(self, tokens: dict[str, list]) -> tuple[Tensor, None, dict]:
        from comfy.model_management import intermediate_device
        if KEY not in tokens:
            raise ValueError(f"these tokens are of another text encoder ({', '.join(tokens)}); tokenize with this CLIP")
        return self.encode(tokens[KEY][0][0][0]).context.to(intermediate_device()), None, {}

    def set_clip_options(self, options: dict) -> None:
        pass

    def reset_clip_options(self) -> None:
        pass

    def load_sd(self, sd: dict) -> tuple[list, list]:
        return [], []


def load_clip(path: Path, bits: int, device: str) -> Any:
    """CLIP of the host around T5Encoder. `device`: "auto" for where the host runs text encoders, or "cpu"."""
    import comfy.sd
    from comfy import model_management
    from comfy.patcher_extension import CallbacksMP
    from comfy.supported_models_base import ClipTarget
    place = torch.device("cpu") if device == "cpu" else model_management.text_encoder_device()
    load = functools.partial(load_encoder, path, bits, place)
    network = TextEncoder(load, load())
    target = ClipTarget(TextTokenizer, lambda **_: network)
    clip = comfy.sd.CLIP(target, model_options={"load_device": place, "offload_device": place,
                                                "initial_device": place, "dtype": torch.float32})
    clip.patcher.size = network.bytes
    if place.type != "cpu":
        clip.patcher.add_callback(CallbacksMP.ON_DETACH, lambda _, unpatch=True: unpatch and network.release())
    return clip


def load_encoder(path: Path, bits: int, device: torch.device) -> T5Encoder:
    """With progress on the node, after the host has made room on a GPU."""
    from comfy import model_management, utils
    if device.type != "cpu":
        model_management.free_memory(path_bytes(path) * BYTES_PER_WEIGHT[bits] / 2, device)
    bar = utils.ProgressBar(1)
    return T5Encoder(path, bits, device, tokenizer=tokenizer_folder(),
                     progress=lambda done, total: bar.update_absolute(done, total))


def path_bytes(path: Path) -> int:
    """Size on disk, as if every weight took two bytes."""
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
    return sum(file.stat().st_size for file in files)


def encode_prompt(clip: Any, text: str, rules: Rules, extra: dict[str, object]) -> tuple[Conditioning, PromptReport]:
    """CONDITIONING with `extra` in it, and what became of the prompt, from our CLIP or the host's."""
    if isinstance(clip.cond_stage_model, TextEncoder):
        request = Request(text, *rules)
        tokens = clip.tokenize(text, pixart=request)
        conditioning = clip.encode_from_tokens_scheduled(tokens, add_dict=extra)
        return conditioning, clip.cond_stage_model.encode(request).reports[0]
    tokens, report = host_tokens(clip, text, rules)
    return clip.encode_from_tokens_scheduled(tokens, add_dict=extra), report


def host_tokens(clip: Any, text: str, rules: Rules) -> tuple[dict[str, list], PromptReport]:
    """Tokens of the host's own T5 (CLIPLoader, type pixart), cut to the trained length, end token kept."""
    cleaned = clean_caption(text) if rules.clean else text
    tokens = clip.tokenize(cleaned)
    if set(tokens) != {HOST_KEY}:
        raise ValueError(f"this CLIP holds {', '.join(tokens)}; PixArt needs T5-XXL alone. Use Load T5 (8-bit), or "
                         "the stock CLIPLoader with type pixart.")
    every = [pair for chunk in tokens[HOST_KEY] for pair in chunk]
    if len(every) <= rules.limit:
        return tokens, PromptReport(text, cleaned, len(every), len(every), rules.limit)
    lost = every[rules.limit - 1:-1]
    cut = "".join(word for _, word in clip.tokenizer.untokenize(lost)).replace("\u2581", " ").strip()
    short = every[:rules.limit - 1] + every[-1:]
    return {HOST_KEY: [short]}, PromptReport(text, cleaned, len(short), len(every), rules.limit, cut)


def rules_of(model: Any) -> Rules:
    """How the prompts of a MODEL were treated in its training."""
    config = getattr(model.model.model_config, "pixart", None) if is_ours(model) else None
    if config is not None:
        return Rules(config.cleans_captions, config.caption_tokens)
    scale = getattr(model.get_model_object("latent_format"), "scale_factor", None)
    return FAMILIES["sigma" if scale == 0.13025 else "alpha"]


def null_conditioning(model: Any, tokens: int, extra: dict[str, object]) -> Conditioning:
    """The first `tokens` rows of the caption that stood for "no caption" in training."""
    from comfy.model_management import intermediate_device
    if model is None or not is_ours(model):
        raise ValueError("the learned empty caption comes from the model; connect the MODEL of Load PixArt")
    if not model.model.model_config.has_null_caption:
        raise ValueError("this model's file has no learned empty caption (diffusers files leave it out); "
                         "use an empty text instead")
    caption = model.model.diffusion_model.y_embedder.y_embedding
    context = caption[None, :tokens].float().to(intermediate_device()).clone()
    return [[context, {"pooled_output": None, **extra}]]


def is_ours(model: Any) -> bool:
    from .transformer import HostTransformer
    return isinstance(model.model.diffusion_model, HostTransformer)
