"""Open any published PixArt file or folder: checked, described in one line, memory-mapped, ready for a model."""
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..config import VARIANTS, PixArtConfig
from ..model.flexdit_config import FlexDiTConfig
from ..quantize.format import Format, Quantized
from ..quantize.layer import keep_quantized
from ..quantize.read import QuantizedWeights, with_dequantized
from ..weights.errors import PIXART_FILE, CheckpointError
from ..weights.reader import ShortLived, Weights
from ..weights.values import EIGHT_BITS, check_finite, check_floating
from . import flexdit
from .configure import ChosenConfig, configure
from .detect import COMPANIONS, Layout, Plan, find_layout, measure_shapes, reference_shapes
from .header import config_from_header, from_tensor
from .layouts import NULL_CAPTION, expected_shapes
from .mup import fold_readout, readout_divisor
from .read import open_network

if TYPE_CHECKING:
    from ..model.attention import Attend
    from ..model.layers import Ops
    from ..model.transformer import PixArtTransformer

logger = logging.getLogger(__name__)

DTYPE_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64",
               torch.float8_e4m3fn: "fp8 e4m3", torch.float8_e5m2: "fp8 e5m2"}
SAMPLE_TENSOR = "blocks.0.attn.proj.weight"  # one of the large matrices, for the data type of the file


@dataclass(frozen=True)
class Checkpoint:
    """Weights of one PixArt transformer, and all that is known about them.

    `state_dict` has reference names (tables without `.weight`), no position table, and always a `y_embedding`;
    where the file has none, it is zero and `has_null_caption` is False: no training without captions then.
    """

    config: PixArtConfig
    state_dict: dict[str, Tensor]
    description: str             # one line for display
    guessed: bool                # part of the configuration rests on the file's name; say so to the user
    has_null_caption: bool
    path: Path
    metadata: Mapping[str, str] = field(default_factory=dict)        # texts of the file's header

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the large matrices; where these were left quantised, of the others."""
        return self.state_dict.get(SAMPLE_TENSOR, self.state_dict["t_block.1.weight"]).dtype


@dataclass(frozen=True)
class OpenCheckpoint:
    """A PixArt transformer in a file that is mapped and recognised, but not read."""

    weights: Weights
    layout: Layout
    choice: ChosenConfig
    divisor: float               # of the readout, for files trained with muP
    guessed: bool

    @property
    def config(self) -> PixArtConfig:
        return self.choice.config

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the large matrices in the file; of their biases where they are quantised."""
        return self.weights.tensors[self.layout.plan[SAMPLE_TENSOR][0]].dtype

    @property
    def quantized_formats(self) -> tuple[Format, ...]:
        """Formats of the quantised layers of this network; a text encoder in the same file may have others."""
        layers = self.weights.layers if isinstance(self.weights, QuantizedWeights) else {}
        names = (part.removesuffix(".weight") for parts in self.layout.plan.values() for part in parts)
        return tuple(layers[name].format for name in names if name in layers)

    @property
    def quantized_as(self) -> tuple[str, ...]:
        """The formats of quantised layers, in alphabetical order; empty for plain weights."""
        return tuple(sorted({form.name for form in self.quantized_formats}))

    @property
    def runs_in_host(self) -> bool:
        """Whether ComfyUI may compute with all quantised layers as they are; else they are dequantised for it."""
        return all(form.runs_in_host for form in self.quantized_formats)

    def quantized(self) -> dict[str, Quantized]:
        """Quantised layers by their reference names. CheckpointError where the file has them in parts (diffusers)."""
        if not isinstance(self.weights, QuantizedWeights):
            return {}
        found = {}
        for name, parts in self.layout.plan.items():
            layer = parts[0].removesuffix(".weight")
            if layer in self.weights.layers and name.endswith(".weight"):
                if len(parts) > 1:
                    raise CheckpointError(self.weights.path, f"{layer} is quantised, and only a part of {name}",
                                          "quantised layers under the names of the official files",
                                          "Dequantise it: python -m pixart quantize FILE --to fp16 --out NEW.")
                found[name.removesuffix(".weight")] = self.weights.quantized(layer)
        return found

    def read(self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu",
             leave_quantized: bool = False) -> Checkpoint:
        """The weights; arguments as in `read_checkpoint`. Logs one line about what was found.

        leave_quantized: without the weights of the layers that `quantized` gives.
        """
        weights, plan = self.weights, self.layout.plan
        if leave_quantized:
            quantized = self.quantized()
            plan = {name: parts for name, parts in plan.items() if name.removesuffix(".weight") not in quantized
                    or not name.endswith(".weight")}
        state_dict = gather_tensors(weights, plan, dtype or common_dtype(weights, plan), torch.device(device))
        has_null_caption = NULL_CAPTION in state_dict
        if not has_null_caption:
            like = state_dict["y_embedder.y_proj.fc1.bias"]
            state_dict[NULL_CAPTION] = like.new_zeros(self.config.caption_tokens, self.config.caption_width)
        if self.divisor != 1:
            state_dict = fold_readout(state_dict, self.divisor)
        kept = " and ".join(self.quantized_as) or dtype_name(weights.tensors[plan[SAMPLE_TENSOR][0]])
        description = describe_checkpoint(self.config, self.guessed, kept, self.layout.name, self.divisor)
        if self.choice.against:
            description = f"chosen although {self.choice.against}: {description}"
        logger.info("%s: %s", weights.path.name, description)
        _log_ignored(self.layout, weights.path)
        return Checkpoint(self.config, state_dict, description, self.guessed, has_null_caption, weights.path,
                          weights.metadata)

    def load(self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu", ops: "Ops | None" = None,
             attend: "Attend | None" = None, quantized: bool = False) -> "PixArtTransformer":
        """The weights as a model; arguments as for the function `load`."""
        from ..model.attention import sdpa
        from ..model.flexdit import transformer_class
        computed = dtype or widened_dtype(self.weights, self.layout.plan)
        checkpoint = self.read(computed, device, leave_quantized=quantized)
        model = transformer_class(checkpoint.config)(checkpoint.config, ops=ops or nn, attend=attend or sdpa,
                                            dtype=checkpoint.dtype, device="meta")
        if quantized:
            keep_quantized(model, self.quantized(), device)
        model.load_state_dict(checkpoint.state_dict, strict=True, assign=True)
        return model.eval()


def open_checkpoint(path: str | os.PathLike, variant: str | PixArtConfig = "auto", ema: bool = False) -> OpenCheckpoint:
    """Map a file and recognise the PixArt transformer in it, checked against all shapes, without reading the weights.

    Arguments and errors as in `read_checkpoint`.
    """
    weights = with_dequantized(open_network(path, ema), beside=COMPANIONS)
    layout = find_layout(weights.tensors, weights.path)
    own = _own_config(weights, layout)
    choice = _recognise(weights, layout, variant, own)
    divisor, by_name = readout_divisor(choice.config, variant, layout.name, own is not None, weights.path)
    return OpenCheckpoint(weights, layout, choice, divisor, choice.guessed or by_name)


def read_checkpoint(path: str | os.PathLike, variant: str | PixArtConfig = "auto", dtype: torch.dtype | None = None,
                    device: torch.device | str = "cpu", ema: bool = False) -> Checkpoint:
    """Read a PixArt transformer in any layout.

    path: .pth, .safetensors, a shard or an index of shards, a diffusers pipeline or its transformer folder. variant:
    "auto", a key of VARIANTS if the weights do not determine it, or a whole PixArtConfig. dtype: convert while reading
    (scale-shift tables become float32). Without dtype, on the CPU, tensors are views of the file, except those that
    diffusers splits and those of a file with mixed data types. ema: use averaged weights if a training checkpoint has
    both. Logs one line about what was found. Raises CheckpointError (a ValueError), or FileNotFoundError.
    """
    return open_checkpoint(path, variant, ema).read(dtype, device)


def read_config(path: str | os.PathLike, variant: str | PixArtConfig = "auto") -> PixArtConfig:
    """The configuration `read_checkpoint` would find, checked against all shapes, without reading the weights."""
    return open_checkpoint(path, variant).config


def load(path: str | os.PathLike, variant: str | PixArtConfig = "auto", dtype: torch.dtype | None = None,
         device: torch.device | str = "cpu", ops: "Ops | None" = None, attend: "Attend | None" = None,
         quantized: bool = False) -> "PixArtTransformer":
    """Open a checkpoint as a model, in evaluation mode; arguments as in `read_checkpoint`.

    Peak memory is the size of the file: the model is created without memory and takes over the tensors that were read.
    Plain 8-bit weights become bfloat16. `ops` supplies the layers (default torch.nn), `attend` the attention.
    quantized: quantised layers stay so in memory and are dequantised whenever they run, which is slower; otherwise they
    are dequantised once. LoRAs cannot be merged into layers that stay quantised.
    """
    return open_checkpoint(path, variant).load(dtype, device, ops, attend, quantized)


def _own_config(weights: Weights, layout: Layout) -> PixArtConfig | None:
    """The configuration that this package, or a host saving a model of this package, stored in the file, if any."""
    header = config_from_header(weights.metadata, weights.path)
    if header is None and layout.config is not None:
        header = from_tensor(weights.tensors[layout.config], weights.path)
    if header is None and any(name.endswith(flexdit.FLEXDIT_MARK) for name in layout.plan):
        raise CheckpointError(weights.path, "a FlexDiT without the header that says its segments and density",
                              "a file of python -m pixart train flexdit", "Use the file as it was written.")
    return header


def _recognise(weights: Weights, layout: Layout, variant: str | PixArtConfig, own: PixArtConfig | None) -> ChosenConfig:
    """Which model these tensors are, from shapes, header, config.json and variant; wrong shapes are refused."""
    shapes = reference_shapes(layout.plan, weights.tensors, weights.path)
    positions = weights.tensors[layout.positions] if layout.positions and own is None else None
    facts = measure_shapes(shapes, positions, weights.path)
    choice = configure(facts, variant, own, weights.settings, weights.path)
    compare_shapes(shapes, choice.config, weights.path)
    return choice


def compare_shapes(shapes: Mapping[str, tuple[int, ...]], config: PixArtConfig, path: Path | str) -> None:
    """Refuse weights that do not fit the configuration. The null caption is optional."""
    refuse_differences(shapes, expected_shapes(config), f"a PixArt model with {config.depth} blocks of width "
                       f"{config.hidden}", path, optional=(NULL_CAPTION,))


def refuse_differences(shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], what: str,
                       path: Path | str, optional: tuple[str, ...] = ()) -> None:
    """CheckpointError with counts and the first example where names or shapes are not those expected of `what`."""
    missing = [name for name in expected if name not in shapes and name not in optional]
    surplus = [name for name in shapes if name not in expected]
    wrong = [name for name in shapes if name in expected and shapes[name] != expected[name]]
    problems = []
    if wrong:
        problems.append(f"{len(wrong)} tensors have another shape, the first is {wrong[0]} with {shapes[wrong[0]]} "
                        f"instead of {expected[wrong[0]]}")
    if missing:
        problems.append(f"{len(missing)} tensors are missing, the first is {missing[0]}")
    if surplus:
        problems.append(f"{len(surplus)} tensors are unknown, the first is {surplus[0]}")
    if problems:
        raise CheckpointError(path, "; ".join(problems), f"the {len(expected)} tensors of {what}",
                              "The file is incomplete, changed or of another model.")


def gather_tensors(weights: Weights, plan: Plan, dtype: torch.dtype | None,
                   device: torch.device, expected: str = PIXART_FILE) -> dict[str, Tensor]:
    """Every tensor under its reference name: a view of the file where possible, else copied one by one.

    Raises CheckpointError for tensors that are no weights: not floating-point, not finite.
    """
    source, result = ShortLived(weights.remap), {}
    for name, parts in plan.items():
        tensor = weights.tensors[parts[0]]
        target = max((weights.tensors[part].dtype for part in parts), key=lambda kept: kept.itemsize)
        if dtype is not None:
            target = torch.float32 if name.endswith("scale_shift_table") else dtype
        if len(parts) > 1:
            tensor = torch.cat([sound(weights, source, part, expected, target).to(target)
                                for part in parts]).to(device)
        else:
            found = sound(weights, source, parts[0], expected, target)
            if target != tensor.dtype or device.type != "cpu" or tensor.is_meta:        # meta: quantised in the file
                tensor = found.to(device=device, dtype=target)
        result[name] = tensor
    return result


def sound(weights: Weights, source: ShortLived, name: str, expected: str, dtype: torch.dtype) -> Tensor:
    """A tensor out of `source`, refused where it holds no weights or `dtype` cannot hold them."""
    check_floating(name, weights.tensors[name], weights.path, expected)
    tensor = source[name]
    check_finite(name, tensor, weights.path, expected, dtype if dtype.itemsize < 4 else torch.float32)
    return tensor


def widened_dtype(weights: Weights, plan: Plan) -> torch.dtype | None:
    """bfloat16 where a tensor is stored in 8 bits, which no layer computes with; None where all can stay as they are.

    Files often keep some blocks in 8 bits and others in 16, so all tensors are checked.
    """
    eight = any(weights.tensors[part].dtype in EIGHT_BITS for parts in plan.values() for part in parts)
    return torch.bfloat16 if eight else None


def common_dtype(weights: Weights, plan: Plan) -> torch.dtype | None:
    """The data type that holds all tensors without loss, where a file mixes types; None where it does not.

    Tables and the null caption are often kept in float32, and 8-bit files keep small tensors wider: neither counts.
    """
    found = {weights.tensors[part].dtype for name, parts in plan.items() for part in parts
             if not name.endswith("scale_shift_table") and name != NULL_CAPTION}
    if len(found) < 2 or found & set(EIGHT_BITS) or not all(dtype.is_floating_point for dtype in found):
        return None
    common = reduce(torch.promote_types, found)
    logger.warning("%s: mixes %s; all is read as %s", weights.path.name,
                   " and ".join(sorted(DTYPE_NAMES.get(dtype, str(dtype)) for dtype in found)), DTYPE_NAMES[common])
    return common


def describe_checkpoint(config: PixArtConfig, guessed: bool, dtype: str, layout: str, divisor: float = 1.0) -> str:
    """One line such as "PixArt-alpha 1024, 28 blocks, 120 tokens, SD latents (0.18215), fp32, diffusers layout"."""
    family = "PixArt-alpha" if config.latent_space == "sd" else "PixArt-Sigma"
    words = [f"{family} {config.resolution}", f"{config.depth} blocks"]
    if config.hidden != PixArtConfig.hidden:
        words.append(f"width {config.hidden}")
    words += [f"{config.caption_tokens} tokens", f"{config.latent_space.upper()} latents ({config.latent_scale})"]
    if config.qk_norm:
        words.append("query/key norm")
    if config.kv_compression is not None:
        mode, factor, layers = config.kv_compression.mode, config.kv_compression.factor, config.kv_compression.layers
        words.append(f"key/value compression {mode} x{factor} in {len(layers)} blocks")
    if isinstance(config, FlexDiTConfig):
        words.insert(0, f"FlexDiT of {config.segments.text}, {config.density.text}")
    if divisor != 1:
        words.append(f"muP readout divided by {divisor:g}")
    words += [dtype, f"{layout} layout"]
    if guessed:
        words.append(f"guessed; choose variant to override ({', '.join(VARIANTS)})")
    return ", ".join(words)


def dtype_name(tensor: Tensor) -> str:
    return DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))


def _log_ignored(layout: Layout, path: Path) -> None:
    control = sum(".copied_block." in name or name.startswith("controlnet") for name in layout.ignored)
    if control:
        logger.info("%s: left out %d control tensors; load the same file with the ControlNet loader for them",
                    path.name, control)
    if len(layout.ignored) > control:
        logger.info("%s: left out %d tensors beside the transformer, such as %s", path.name,
                    len(layout.ignored) - control, layout.ignored[0])
