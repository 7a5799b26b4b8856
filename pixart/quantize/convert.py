"""A PixArt transformer with the matrices of its blocks quantised; everything else stays in 16 bits."""
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.header import to_header, to_tensors
from ..checkpoint.layouts import NULL_CAPTION, POSITION_TABLE
from ..checkpoint.load import OpenCheckpoint, open_checkpoint
from ..config import PixArtConfig
from ..dtypes import COMPUTE_DTYPES, dtype_named
from ..progress import CountProgress
from ..weights.errors import PIXART_FILE
from ..weights.safetensors_file import write_tensors
from ..weights.values import check_finite
from .format import FULL_PRECISION, FormatOptions, Quantized
from .formats import TARGETS
from .report import LayerError, error_of

logger = logging.getLogger(__name__)

BLOCK_MATRIX = r"(attn\.(qkv|q|kv|v|proj)|cross_attn\.(q_linear|kv_linear|proj)|mlp\.fc[12])\.weight"
MATRICES = re.compile(rf"blocks\.\d+\.{BLOCK_MATRIX}")
PLAIN_TARGETS = {name: dtype_named(name) for name in COMPUTE_DTYPES}
TOLD = "pixart_packed"                  # header entry: the target that a file was made for
LayerOptions = Callable[[str, PixArtConfig], FormatOptions]  # (layer, model) -> settings of its format


def convert(source: str | os.PathLike, target: str, out: str | os.PathLike, variant: str | PixArtConfig = "auto",
            weights_only: bool = False, progress: CountProgress | None = None,
            settings: LayerOptions | None = None) -> list[LayerError]:
    """Write `source`, a PixArt transformer in any layout, in the format `target`; returns what each layer lost.

    target: a key of TARGETS, or fp16, bf16, fp32, which dequantise a quantised file and only round to that type.
    weights_only: tell the host to dequantise weights before it multiplies, so that its kernels do not round their
    inputs too; for float8, nvfp4 and mxfp8. progress(done, total), counted in layers, may raise to stop. settings: in
    place of the target's own; for fp4. The file is complete or absent.
    Raises CheckpointError for a file that is no PixArt, ValueError for an unknown target, for one that the width of
    the model does not allow, and for a file that is quantised already.
    """
    if target not in TARGETS and target not in PLAIN_TARGETS:
        raise ValueError(f"there is no format {target!r}; use {', '.join((*TARGETS, *PLAIN_TARGETS))}")
    further = host_options(target, weights_only)
    if target in PLAIN_TARGETS:
        checkpoint = open_checkpoint(source, variant)
        write_converted(Path(out), tensors_of(checkpoint, PLAIN_TARGETS[target]), checkpoint.config, {})
        return []
    checkpoint, chosen = open_plain(source, variant), TARGETS[target]
    options_of = settings or chosen.settings

    def quantizer(layer: str, weight: Tensor) -> Quantized:
        return chosen.quantize(weight, {**options_of(layer, checkpoint.config), **further})
    return convert_by(quantizer, checkpoint, target, out, progress)


def host_options(target: str, weights_only: bool) -> FormatOptions:
    """What marks tell the host beside the format. ValueError where `weights_only` has no effect with the target."""
    if not weights_only:
        return {}
    if (reason := no_effect(target)):
        raise ValueError(f"weights_only has no effect with {target}: {reason}")
    return {FULL_PRECISION: True}


def no_effect(target: str) -> str:
    """Why `weights_only` has no effect with a target; "" where it has."""
    if target in PLAIN_TARGETS:
        return "nothing is quantised"
    if not TARGETS[target].format.runs_in_host:
        return "the host dequantises it as it loads"
    return "the host rounds the inputs of its layers in any case" if TARGETS[target].format.rounds_inputs else ""


def open_plain(source: str | os.PathLike, variant: str | PixArtConfig) -> OpenCheckpoint:
    """A checkpoint that is not quantised yet; ValueError for one that is."""
    checkpoint = open_checkpoint(source, variant)
    if checkpoint.quantized_as:
        raise ValueError(f"its layers are quantised as {' and '.join(checkpoint.quantized_as)} already; use the "
                         f"original weights, quantising twice would add both errors. File: {source}")
    return checkpoint


def convert_by(quantizer: Callable[[str, Tensor], Quantized], checkpoint: OpenCheckpoint, target: str,
               out: str | os.PathLike, progress: CountProgress | None = None) -> list[LayerError]:
    """Write a checkpoint with its matrices quantised by `quantizer`(layer, weight (N, K) float32), as `target`."""
    state = tensors_of(checkpoint, torch.float32)
    errors = quantize_matrices(state, quantizer, kept_dtype(checkpoint), checkpoint.weights.path, progress)
    write_converted(Path(out), state, checkpoint.config, {TOLD: target})
    return errors


def tensors_of(checkpoint: OpenCheckpoint, dtype: torch.dtype) -> dict[str, Tensor]:
    """Everything that belongs in a file of these weights."""
    found = checkpoint.read(dtype)
    return {name: tensor for name, tensor in found.state_dict.items()
            if name != NULL_CAPTION or found.has_null_caption}


def quantize_matrices(state: dict[str, Tensor], quantizer: Callable[[str, Tensor], Quantized], rest: torch.dtype,
                      path: Path, progress: CountProgress | None, which: re.Pattern[str] = MATRICES
                      ) -> list[LayerError]:
    """In place: float32 tensors to those of the quantised file. rest: type of what is not quantised, tables excepted.

    which: names of the matrices to quantise.
    """
    matrices = [name for name in state if which.fullmatch(name)]
    for name in state.keys() - set(matrices):
        if not name.endswith("scale_shift_table"):
            check_finite(name, state[name], path, PIXART_FILE, rest)
            state[name] = state[name].to(rest)
    errors = []
    for done, name in enumerate(matrices, 1):
        layer, weight = name.removesuffix(".weight"), state.pop(name)
        quantized, error = quantized_layer(layer, weight, quantizer, path)
        errors.append(error)
        state.update({f"{layer}.{own}": tensor for own, tensor in quantized.entries().items()})
        if progress:
            progress(done, len(matrices))
    return errors


def quantized_layer(layer: str, weight: Tensor, quantizer: Callable[[str, Tensor], Quantized],
                    path: Path) -> tuple[Quantized, LayerError]:
    """weight (N, K) float32, quantised, and what it lost. ValueError, with layer and file, where that is too much."""
    try:
        quantized = quantizer(layer, weight)
    except ValueError as error:
        raise ValueError(f"{layer}: {error}. Choose another format. File: {path}") from error
    found = error_of(layer, weight, quantized)
    if not found.worst < 1:                     # rounding alone never comes near; NaN is not below 1 either
        raise ValueError(f"{layer} holds numbers too large for {quantized.format.name}. Choose another format. File: "
                         f"{path}")
    return quantized, found


def kept_dtype(checkpoint: OpenCheckpoint) -> torch.dtype:
    """Data type of what is not quantised: as in the file where that has 16 bits, else float16, for more digits."""
    return checkpoint.dtype if checkpoint.dtype in (torch.float16, torch.bfloat16) else torch.float16


def write_converted(path: Path, tensors: dict[str, Tensor], config: PixArtConfig, told: dict[str, str]) -> None:
    """Write a file with its configuration, and the position table, by which other loaders know the trained size."""
    tensors = {**tensors, POSITION_TABLE: to_tensors(config)[POSITION_TABLE]}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, {"format": "pt", **told, **to_header(config)})
    logger.info("%s: %.2f GB", path, path.stat().st_size / 1e9)
