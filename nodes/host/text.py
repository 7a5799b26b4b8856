"""The T5 encoder as a CLIP of the host, and prompts encoded by it or by the host's own T5."""
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...pixart.text import EmbeddingCache, Encoded, PromptReport, T5Encoder
from ...pixart.text.fitting import AUTO, GIB, fit_t5
from ...pixart.text.long import LONGEST_PROMPT, beyond, report_of
from ...pixart.text.quantized import INT8, Bits
from ...pixart.text.segments import split_segments
from .folders import tokenizer_folder
from .guest import progress_on_node
from .node_text import show_text
from .prompt_request import PROMPT_RULES, PromptRequest, Rules, TextTokenizer, requests_of
from .stock_tokens import HOST_KEY, host_tokens

logger = logging.getLogger(__name__)

BYTES_PER_WEIGHT: dict[Bits, float] = {16: 2.0, 8: 1.3, 4: 0.9}     # with the layers that stay in 16 bits
Conditioning = list[list]


class HostTextEncoder(torch.nn.Module):
    """Stands where the host expects a text encoder network.

    The weights are not parameters of this module: 8-bit layers must not be cast, patched or moved by the host. They
    stay on one device until the host wants its memory back, and come back when a new prompt needs them.
    """

    model_loaded_weight_memory: int     # bytes on the device, as the host counts them
    disable_offload = True      # hosts with dynamic VRAM would reserve addresses for all its parameters: it has none

    def __init__(self, load: Callable[[], T5Encoder], encoder: T5Encoder) -> None:
        super().__init__()
        self.dtypes = {torch.float32}
        self.load, self.encoder, self.cache = load, encoder, EmbeddingCache()
        self.width, self.identity, self.bits = encoder.width, encoder.identity, encoder.bits

    def encode(self, request: PromptRequest) -> Encoded:
        """context (1, L, C) float32 without padding. An unchanged prompt does not run the encoder again."""
        kept = self.kept(request)
        if kept is not None:
            return kept
        if self.encoder.model is None:
            self.encoder = self.load()
        return self.cache.encode(self.encoder, *cache_arguments(request))

    def kept(self, request: PromptRequest) -> Encoded | None:
        return self.cache.find(self.identity, self.bits, *cache_arguments(request))

    def release(self, *_: object) -> None:
        """Free the weights, on the host's request."""
        logger.info("T5 encoder %s leaves memory", self.encoder.path)
        self.encoder.close()

    @property
    def bytes(self) -> int:
        """Approximate size of its weights, which the host cannot see."""
        return int(self.encoder.parameters * BYTES_PER_WEIGHT[self.bits])

    def encode_token_weights(self, tokens: dict[str, list]) -> tuple[Tensor, None, dict]:
        """Features of all that nodes have concatenated, as the host's own encoders give them."""
        from comfy.model_management import intermediate_device
        contexts = [self.encode(each).context for each in requests_of(tokens)]
        return torch.cat(contexts, 1).to(intermediate_device()), None, {}

    def keeps(self, tokens: Mapping[str, list]) -> bool:
        """Whether all of it was encoded before, so that the weights are not needed."""
        return all(self.kept(request) is not None for request in requests_of(tokens))

    def set_clip_options(self, options: dict) -> None:
        if options.get("layer") is not None:
            raise ValueError("PixArt was trained on the last layer of T5 only. Take CLIP Set Last Layer out of the "
                             "workflow.")

    def reset_clip_options(self) -> None:
        pass

    def load_sd(self, sd: dict) -> tuple[list, list]:
        return [], []

    def to_save(self) -> dict[str, Tensor]:
        """The weights under the host's names. ValueError in 8 and 4 bits, which no other program would read."""
        if self.encoder.model is None and self.bits == 16:
            self.encoder = self.load()
        return {f"{HOST_KEY}.transformer.{name}": tensor for name, tensor in self.encoder.state_dict().items()}


class MovableTextEncoder(HostTextEncoder):
    """Its weights are visible to the host, which moves, offloads and patches them layer by layer."""

    def __init__(self, load: Callable[[], T5Encoder], encoder: T5Encoder) -> None:
        super().__init__(load, encoder)
        self.network = encoder.model
        self.patches: object = None

    def encode(self, request: PromptRequest) -> Encoded:
        """Forgets cached prompts if the host has patched the weights since they were encoded."""
        patches = getattr(self, "current_weight_patches_uuid", None)        # identifies the patches on the weights
        if patches != self.patches:
            self.cache.clear()
            self.patches = patches
        return super().encode(request)

    def keeps(self, tokens: Mapping[str, list]) -> bool:
        """Not known before it is loaded: only then has the host applied the patches of the CLIP."""
        return False

    def release(self, *_: object) -> None:
        """Nothing to do: the host moves these weights itself."""


def cache_arguments(request: PromptRequest) -> tuple[list[str], int, bool, bool]:
    return [request.text], request.limit, request.clean, request.emphasis


@functools.cache
def clip_class() -> type:
    from comfy.sd import CLIP

    class PixArtCLIP(CLIP):
        """The host's own class sees no weights in our text encoder and would save or merge none."""

        def clone(self, *arguments: Any, **named: Any) -> Any:
            other = super().clone(*arguments, **named)
            other.__class__ = type(self)        # the host's clone is always a plain CLIP
            return other

        def load_model(self, *tokens: Any) -> Any:
            """The host makes room for all of T5 here, and sends the MODEL away where there is little. Newer hosts say
            what for."""
            if tokens and tokens[0] and self.cond_stage_model.keeps(tokens[0]):
                return self.patcher
            return super().load_model(*tokens)

        def get_sd(self) -> dict[str, Tensor]:
            return self.cond_stage_model.to_save()

        def state_dict_for_saving(self) -> dict[str, Tensor]:
            """The name of `get_sd` on newer hosts."""
            return self.cond_stage_model.to_save()

        def get_key_patches(self) -> dict:
            raise ValueError("the CLIP of Load T5 cannot be merged: its weights may be of 8 or 4 bits. Load both text "
                             "encoders with the stock CLIPLoader (type pixart) to merge them.")
    return PixArtCLIP


def load_clip(path: Path, bits: Bits, device: str) -> Any:
    """CLIP of the host around T5Encoder. `device`: "auto" for where the host runs text encoders, or "cpu"."""
    from comfy import model_management
    place = torch.device("cpu") if device == "cpu" else model_management.text_encoder_device()
    bits = fitting_bits(path, bits, place)
    load = functools.partial(load_encoder, path, bits, place)
    if bits == INT8:
        away = place if place.type == "cpu" else model_management.text_encoder_offload_device()
        return clip_of(MovableTextEncoder(load, load()), place, away)
    return pinned_clip(HostTextEncoder(load, load(make_room=True)), place)


def fitting_bits(path: Path, bits: Bits, place: torch.device) -> Bits:
    """For "auto" the best that the device's memory holds once other models are unloaded; the node shows which.

    Where nothing fits that is int8, some of whose layers the host keeps outside.
    """
    from comfy import model_management
    if bits != AUTO:
        return fit_t5(path, bits, place).bits
    room = (model_management.get_free_memory(place) if place.type == "cpu"
            else model_management.get_total_memory(place) - model_management.extra_reserved_memory())
    found = fit_t5(path, bits, place, int(room))
    if found.words:
        show_text(found.words if found.device == place else
                  f"{room / GIB:.1f} GiB are too little for all of T5: int8, a part of it stays outside.")
    return found.bits


def clip_of(network: HostTextEncoder, place: torch.device, away: torch.device) -> Any:
    """The host's CLIP around a text encoder that runs in one place and waits in another, where it is now."""
    from comfy.supported_models_base import ClipTarget
    target = ClipTarget(TextTokenizer, lambda **_: network)
    return clip_class()(target, model_options={"load_device": place, "offload_device": away, "initial_device": away,
                                               "dtype": torch.float32})


def pinned_clip(network: HostTextEncoder, place: torch.device) -> Any:
    """The same for weights that stay in one place until the host wants its memory."""
    from comfy.patcher_extension import CallbacksMP
    clip = clip_of(network, place, place)
    clip.patcher.size = network.model_loaded_weight_memory = network.bytes     # all of them are there already
    if place.type != "cpu":
        def detached(_: Any, unpatch: bool = True) -> None:
            if unpatch:
                network.release()
        clip.patcher.add_callback(CallbacksMP.ON_DETACH, detached)
    return clip


def load_encoder(path: Path, bits: Bits, device: torch.device, make_room: bool = False) -> T5Encoder:
    """With progress on the node. make_room: free GPU memory first, for the first load only; later the host does that by
    itself, as it knows the size then, and a second request could unload this very encoder."""
    from comfy import model_management, utils

    from .int8_text import build_int8
    if make_room and device.type != "cpu":
        model_management.free_memory(path_bytes(path) * BYTES_PER_WEIGHT[bits] / 2, device)
    bar = utils.ProgressBar(1)
    return T5Encoder(path, bits, device, tokenizer=tokenizer_folder(),
                     progress=lambda done, total: bar.update_absolute(done, total),
                     build=build_int8 if bits == INT8 else None)


def path_bytes(path: Path) -> int:
    """Size on disk, as if every weight took two bytes."""
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
    return sum(file.stat().st_size for file in files)


def encode_prompt(clip: Any, text: str, rules: Rules, extra: dict[str, object],
                  emphasis: bool = False) -> tuple[Conditioning, PromptReport]:
    """CONDITIONING with `extra` in it, and the report of the prompt, from our CLIP or the host's.

    emphasis: whether (word:1.2) and escapes are read, or brackets are text.
    """
    if isinstance(clip.cond_stage_model, HostTextEncoder):
        request = PromptRequest(text, *rules, emphasis)
        tokens = clip.tokenize(text, pixart=request)
        conditioning = clip.encode_from_tokens_scheduled(tokens, add_dict=extra)
        return conditioning, clip.cond_stage_model.encode(request).reports[0]
    tokens, report = host_tokens(clip, text, rules, emphasis)
    return clip.encode_from_tokens_scheduled(tokens, add_dict=extra), report


def encode_long_prompt(clip: Any, text: str, rules: Rules, extra: dict[str, object], mode: str,
                       inner_ends: bool = False) -> tuple[Conditioning, PromptReport]:
    """As `encode_prompt` with emphasis; mode: one of MODES, for prompts longer than the training captions."""
    if mode == "truncate":
        return encode_prompt(clip, text, rules, extra, emphasis=True)
    if mode == "whole":
        conditioning, report = encode_prompt(clip, text, rules._replace(limit=LONGEST_PROMPT), extra, emphasis=True)
        return conditioning, beyond(report, rules.limit)
    segments, parts = split_segments(text, True), []
    progress = progress_on_node(len(segments))          # hundreds of them take minutes on a CPU
    for number, segment in enumerate(segments, 1):
        parts.append(encode_prompt(clip, segment, rules, extra, emphasis=True))
        progress(number, len(segments))
    reports = [report for _, report in parts]
    whole = joined_conditioning([conditioning for conditioning, _ in parts], reports, inner_ends)
    return whole, report_of(reports, text, whole[0][0].shape[1])


def joined_conditioning(parts: Sequence[Conditioning], reports: Sequence[PromptReport], inner_ends: bool
                        ) -> Conditioning:
    """Segments concatenated, entry by entry (a CLIP with hooks gives several); end tokens as in `joined`."""
    if len(parts) == 1:
        return parts[0]
    ends = [report.tokens - (0 if inner_ends or number == len(reports) - 1 else 1)
            for number, report in enumerate(reports)]
    whole = []
    for entries in zip(*parts):
        context = torch.cat([entry[0][:, :end] for entry, end in zip(entries, ends)], dim=1)
        extra = {key: value for key, value in entries[0][1].items() if key != "attention_mask"}
        whole.append([context, extra])
    return whole


def rules_of(model: Any) -> Rules:
    """How the prompts of a MODEL were treated in its training."""
    from .pt_dit import holds_pt_dit
    known = is_ours(model) or holds_pt_dit(model)
    config = getattr(model.model.model_config, "pixart", None) if known else None
    if config is not None:
        return Rules(config.cleans_captions, config.caption_tokens)
    scale = getattr(model.get_model_object("latent_format"), "scale_factor", None)
    return PROMPT_RULES["sigma" if scale == 0.13025 else "alpha"]


def null_conditioning(model: Any, tokens: int, extra: dict[str, object]) -> Conditioning:
    """The first `tokens` rows of the model's null caption, which stood for "no caption" in training."""
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
