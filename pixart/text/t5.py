"""The T5 text encoder of PixArt in one of four precisions: bfloat16, LLM.int8, NF4, or int8 without bitsandbytes."""
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..device import checked_device, release
from ..model.cpu_dtype import fitting_dtype
from ..weights.errors import CheckpointError
from .cleaning import clean_caption, cleaning_notes, removed_ideographs
from .emphasis import WeightedText, weigh_tokens, weighted_parts
from .encoded import Encoded, join_encoded
from .files import EMBEDDING, FIRST_QUERY, T5_FILE, T5Files, files_identity
from .float32_layers import Float32Embedding, Float32Linear
from .quantized import INT8, Bits, check_bits, quantized_linear, quiet_casts, require_bitsandbytes
from .tokens import PromptReport, PromptTokenizer, check_request, load_tokenizer, lone_tokenizer

if TYPE_CHECKING:
    from transformers import T5Config

logger = logging.getLogger(__name__)

MULTILINGUAL_VOCABULARY = 250_000      # mT5 and UMT5 have 250,112 ids or more, T5 has 32,128
_BLOCK = "encoder.block.{}.layer.{}.{}.weight"
PAD = 0
TIED = "embed_tokens.weight"            # the same tensor as shared.weight
_Tokens = tuple[list[int], list[float], PromptReport]       # ids, their weights, the report
# Makes a network that is called like that of transformers: (files, its configuration, progress) -> network.
Build = Callable[[T5Files, "T5Config", Callable[[int, int], None] | None], nn.Module]


class T5Encoder:
    """T5 v1.1 encoder, pinned to one device, in one of four precisions.

    bits 16: bfloat16. 8: LLM.int8 of bitsandbytes. 4: NF4 of bitsandbytes. In 8 and 4 bits the layers `wo` stay
    bfloat16, as in the published 8-bit recipe: their inputs have extreme values. "int8": this package's 8 bits for
    all of them, which round only the weights, on every device and without bitsandbytes. Nothing is ever cast to float16
    as a whole. Products are computed in bfloat16, on a CPU without matrix units for it in float32 from the same
    weights. Weights are read one at a time and quantised at once, so loading needs little more memory than the result.

    `path`: safetensors or PyTorch file (any prefix in front of the encoder's names), a shard, an index, or a Hugging
    Face folder. `tokenizer`: folder or file for when there is no tokenizer beside the weights; without it a single file
    takes that of `lone_tokenizer`.
    `progress(done, total)`, counted in tensors, may raise to stop loading. `build`: makes the network in place of this
    class, and then decides its precision.
    Raises FileNotFoundError and ValueError that name the file and what to do.
    """

    def __init__(self, path: str | Path, bits: Bits = 8, device: str | torch.device = "cpu",
                 tokenizer: str | Path | None = None, progress: Callable[[int, int], None] | None = None,
                 build: "Build | None" = None) -> None:
        self.device = _checked_device(bits, device)
        files = T5Files(path)
        config = _config(files)
        self.path = Path(path)
        self.bits = bits
        self.width: int = config.d_model                   # C of the context: 4096 for T5-XXL
        self.tokenizer: PromptTokenizer = _tokenizer(files, tokenizer)
        if self.tokenizer.size > config.vocab_size:
            raise ValueError(f"the tokenizer {self.tokenizer.source} has {self.tokenizer.size} ids, but the T5 in "
                             f"{path} only {config.vocab_size}; they do not belong together")
        self.identity = _identity(files.files, self.tokenizer.source)
        self.model: nn.Module | None = build(files, config, progress) if build else _load(
            files, config, bits, self.device, progress)
        self.parameters: int = sum(torch.Size(shape).numel() for shape in files.shapes.values() if len(shape))
        logger.info("T5 encoder %s: %d layers, width %d, %s on %s", path, config.num_layers, self.width, self.precision,
                    device)

    @property
    def precision(self) -> str:
        """For display: "16-bit", "8-bit", "4-bit" or "int8"."""
        return "int8" if self.bits == INT8 else f"{self.bits}-bit"

    def encode(self, prompts: list[str], max_tokens: int, clean: bool = False, batch: int = 1,
               emphasis: bool = False) -> Encoded:
        """Features (B, L, C) float32 and mask (B, L) of `prompts`, on the CPU, padded to the longest of them.

        `max_tokens`: 120 for alpha and delta, 300 for Sigma; longer prompts are cut and reported. `clean`: clean the
        captions first, as for alpha and delta. `batch`: prompts in one pass; with 1 a result does not depend on
        the other prompts at all, with more it is faster and differs by rounding (by outlier columns in 8 bits).
        `emphasis`: read (words:1.3) and escapes as `emphasis.weighted_parts` does; otherwise brackets are text, as
        captions have them.
        """
        check_request(prompts, max_tokens)
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        if self.model is None:
            raise ValueError(f"the T5 encoder {self.path} was closed; load it again to encode")
        tokens = [self._tokens(prompt, max_tokens, clean, emphasis) for prompt in prompts]
        return join_encoded([self._run(tokens[at:at + batch]) for at in range(0, len(tokens), batch)])

    def close(self) -> None:
        """Free the weights; encoding afterwards is an error."""
        self.model = None
        release(self.device)

    def state_dict(self) -> dict[str, Tensor]:
        """The weights under the names of transformers, in bfloat16. ValueError in 8 and 4 bits, and when closed."""
        if self.bits != 16:
            number = 8 if self.bits == INT8 else self.bits
            raise ValueError(f"T5 in {number} bits cannot be saved; load it in 16 bits to save it, or keep the file it "
                             f"came from: {self.path}")
        if self.model is None:
            raise ValueError(f"the T5 encoder was closed; load it again to save it: {self.path}")
        return {name: tensor.to(torch.bfloat16) for name, tensor in self.model.state_dict().items()
                if not name.endswith(TIED)}

    def _tokens(self, prompt: str, limit: int, clean: bool, emphasis: bool) -> _Tokens:
        parts = weighted_parts(prompt) if emphasis else (WeightedText(prompt),)
        if not clean:
            return self.tokenizer.encode_parts(prompt, limit, parts)
        cleaned = [WeightedText(clean_caption(part.text), part.weight) for part in parts]
        notes = tuple(cleaning_notes(prompt))
        if prompt.strip() and not any(part.text for part in cleaned):
            notes += ("cleaning left nothing of this prompt, as in training on English captions",)
        elif removed := removed_ideographs(prompt):
            notes += (f"cleaning removed, as in training on English captions: {removed[:80]}",)
        return self.tokenizer.encode_parts(prompt, limit, cleaned, between=" ", notes=notes)

    def _run(self, tokens: list[_Tokens]) -> Encoded:
        lengths = torch.tensor([len(ids) for ids, _, _ in tokens])
        longest = int(lengths.max())
        ids = torch.tensor([ids + [PAD] * (longest - len(ids)) for ids, _, _ in tokens])
        mask = torch.arange(longest)[None] < lengths[:, None]
        context = self._features(ids, mask) * mask[..., None]
        for row, (_, weights, _) in enumerate(tokens):
            if any(weight != 1 for weight in weights):
                padding = torch.full((1, len(weights)), PAD)
                empty = self._features(padding, torch.ones_like(padding, dtype=torch.bool))[0]
                context[row, :len(weights)] = weigh_tokens(context[row, :len(weights)], empty, weights)
        if not torch.isfinite(context).all():
            raise ValueError(f"the T5 encoder gives values that are not finite; its weights are damaged: {self.path}")
        return Encoded(context, mask, [report for _, _, report in tokens], f"{self.path.name} {self.precision}")

    def _features(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids (B, L), mask (B, L) bool -> (B, L, C) float32 on the CPU."""
        assert self.model is not None       # checked in `encode`
        with torch.no_grad(), quiet_casts():
            hidden = self.model(input_ids=ids.to(self.device),
                                attention_mask=mask.to(self.device, torch.long)).last_hidden_state
        return hidden.float().cpu()


def encoder_identity(path: str | Path, tokenizer: str | Path | None = None) -> str:
    """`T5Encoder.identity` without loading anything but the tokenizer, to ask a cache first."""
    files = T5Files(path)
    return _identity(files.files, _tokenizer(files, tokenizer).source)


def require_t5(path: str | Path) -> None:
    """Raises FileNotFoundError or ValueError, as T5Encoder, unless this is a T5 with a tokenizer; reads no weights."""
    _tokenizer(T5Files(path), None)


def _tokenizer(files: T5Files, chosen: str | Path | None) -> PromptTokenizer:
    own = _own_folder(files)
    return load_tokenizer(own, lone_tokenizer(files.files[0]) if own is None and chosen is None else chosen)


def _identity(files: list[Path], tokenizer: Path) -> str:
    return files_identity([*files, tokenizer])


def _own_folder(files: T5Files) -> Path | None:
    """Where the tokenizer of these weights is; None for a single file among files of other models."""
    return files.folder if files.config or files.path.is_dir() or len(files.files) > 1 else None


def _checked_device(bits: Bits, device: str | torch.device) -> torch.device:
    check_bits(bits)
    chosen = checked_device(device)
    by_bitsandbytes = bits in (8, 4)
    if by_bitsandbytes and chosen.type == "mps":
        raise ValueError(f"T5 in {bits} bits was asked for on {chosen}, for which bitsandbytes has no kernels; use "
                         "int8 or 16 bits, or the device cpu")
    if by_bitsandbytes:
        require_bitsandbytes(bits)
    return chosen


def _config(files: T5Files) -> "T5Config":
    """Sizes from the shapes of the weights; what shapes cannot tell from config.json, else as in T5 v1.1."""
    from transformers import T5Config

    sizes = _BLOCK.format(0, 0, "SelfAttention.relative_attention_bias"), _BLOCK.format(0, 1, "DenseReluDense.wi_0")
    for name in (EMBEDDING, FIRST_QUERY, *sizes):
        shape = files.shapes.get(name, ())
        if len(shape) != 2 or 0 in shape:
            found = f"{name} of shape {shape}" if name in files.shapes else f"it lacks {name}"
            raise CheckpointError(files.path, f"{found}, so it is not a complete T5 encoder", T5_FILE)
    vocabulary, width = files.shapes[EMBEDDING]
    if vocabulary >= MULTILINGUAL_VOCABULARY:
        raise CheckpointError(files.path, f"it looks like a multilingual T5 (mT5, {vocabulary} ids)", T5_FILE)
    (buckets, heads), inner = files.shapes[sizes[0]], files.shapes[sizes[1]][0]
    layers = _count_layers(files)
    keep: dict[str, Any] = {"relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6,
                            "feed_forward_proj": "gated-gelu"}
    keep = {name: files.config.get(name, default) for name, default in keep.items()}
    return T5Config(vocab_size=vocabulary, d_model=width, num_layers=layers, num_heads=heads,
                    d_kv=files.shapes[FIRST_QUERY][0] // heads,
                    d_ff=inner,
                    relative_attention_num_buckets=buckets, dropout_rate=0.0, **keep)


def _count_layers(files: T5Files) -> int:
    """By the highest index; more layers than tensors mean damage, not a deep model."""
    found = [int(match[1]) for name in files.shapes if (match := re.match(r"encoder\.block\.(\d{1,9})\.", name))]
    layers = 1 + max(found)
    if layers > len(files.shapes):
        raise CheckpointError(files.path, f"a tensor of layer {layers - 1} among {len(files.shapes)} tensors", T5_FILE,
                              "The file is incomplete or damaged.")
    return layers


def _load(files: T5Files, config: "T5Config", bits: Bits, device: torch.device,
          progress: Callable[[int, int], None] | None) -> nn.Module:
    from transformers import T5EncoderModel

    with torch.device("meta"):
        model = T5EncoderModel(config)
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters() if name != "encoder.embed_tokens.weight"}
    computed = fitting_dtype(device, config.d_model)
    read_weights(files, wanted, lambda name, weight: _install(model, name, weight, bits, device, computed), progress)
    model.set_input_embeddings(model.shared)
    return model.eval().requires_grad_(False)


def read_weights(files: T5Files, wanted: dict[str, tuple[int, ...]], install: Callable[[str, Tensor], None],
                 progress: Callable[[int, int], None] | None) -> None:
    """Read tensors of these names and shapes, one at a time, block by block, and hand each to `install`.

    Raises CheckpointError where one is missing or has another shape, before any is read.
    """
    _check_complete(files, wanted)
    block = ""
    for done, name in enumerate(sorted(wanted, key=_block_of)):
        if _block_of(name) != block:
            block = _block_of(name)
            files.release()                     # pages of the block before need not stay in memory
        install(name, files.read(name))
        if progress:
            progress(done + 1, len(wanted))
    files.release()


def _block_of(name: str) -> str:
    return ".".join(name.split(".")[:3])


def _check_complete(files: T5Files, wanted: dict[str, tuple[int, ...]]) -> None:
    missing = [name for name in wanted if name not in files.shapes]
    if missing:
        raise CheckpointError(files.path, f"it lacks {len(missing)} of the {len(wanted)} tensors of this T5 encoder, "
                              f"the first is {missing[0]}", T5_FILE, "The file is not complete.")
    wrong = [name for name, shape in wanted.items() if files.shapes[name] != shape]
    if wrong:
        raise CheckpointError(files.path, f"{len(wrong)} tensors have the wrong shape, the first is {wrong[0]} with "
                              f"{files.shapes[wrong[0]]}", f"{wanted[wrong[0]]} there")


def _install(model: nn.Module, name: str, weight: Tensor, bits: Bits, device: torch.device, computed: torch.dtype
             ) -> None:
    """Put one weight into its place, quantised where `bits` asks for it; bitsandbytes leaves `wo` out.

    computed: dtype of the products. In float32 the network's inputs and norms must be float32 too.
    """
    module_name, _, parameter = name.rpartition(".")
    module = model.get_submodule(module_name)
    replaced: nn.Module | None = None
    if bits != 16 and isinstance(module, nn.Linear) and (bits == INT8 or not module_name.endswith(".wo")):
        replaced = quantized_linear(weight, bits, device, computed)
    elif computed == torch.float32 and isinstance(module, nn.Linear):
        replaced = Float32Linear(weight)
    elif computed == torch.float32 and isinstance(module, nn.Embedding):
        replaced = Float32Embedding(weight)
    if replaced is None:
        # A view of the file would keep all of it mapped for the sake of a norm.
        owned = weight.to(device, computed, copy=weight.ndim == 1)
        setattr(module, parameter, nn.Parameter(owned, requires_grad=False))
    else:
        parent, _, child = module_name.rpartition(".")
        setattr(model.get_submodule(parent), child, replaced)
