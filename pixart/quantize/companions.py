"""Quantising what goes with a transformer: the copies of a ControlNet, and the layers of a T5 encoder.

Both are dequantised as they are opened: files become smaller, memory does not. (T5 loaded as int8 is quantised again.)
"""
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.control import CONTROL_FILE, CONTROL_FORMAT, find_control, read_control
from ..checkpoint.header import to_header
from ..checkpoint.layouts import file_name
from ..checkpoint.load import open_checkpoint
from ..checkpoint.read import open_network
from ..progress import CountProgress
from ..text.files import T5_FILE, T5Files
from ..weights.errors import CheckpointError
from ..weights.safetensors_file import write_tensors
from ..weights.values import check_finite
from .convert import BLOCK_MATRIX, TOLD, host_options, quantize_matrices, quantized_layer
from .format import QUANTIZATION_MARK, Quantized
from .formats import TARGETS
from .report import LayerError

CONTROL_MATRICES = re.compile(rf"controlnet\.\d+\.copied_block\.{BLOCK_MATRIX}")
T5_MATRICES = re.compile(r"encoder\.block\.\d+\.layer\.\d\.(SelfAttention\.[qkvo]|DenseReluDense\.(wi|wi_0|wi_1|wo))"
                         r"\.weight")
SIXTEEN = (torch.float16, torch.bfloat16)


def part_in(path: str | os.PathLike) -> str:
    """What a file or folder holds: transformer, controlnet or t5.

    ValueError where it holds a transformer with its ControlNet; CheckpointError, as opening a transformer does, where
    it holds none of them.
    """
    try:
        open_checkpoint(path)
    except CheckpointError as error:
        if holds_control(path):
            return "controlnet"
        if holds_t5(path):
            return "t5"
        raise error
    if holds_control(path):
        raise ValueError("a transformer and its ControlNet in one file; say which to quantise with --part transformer "
                         f"or --part controlnet: {path}")
    return "transformer"


def holds_control(path: str | os.PathLike) -> bool:
    try:
        find_control(open_network(path, classes=("PixArtControlNetAdapterModel",), expected=CONTROL_FILE))
    except CheckpointError:
        return False
    return True


def holds_t5(path: str | os.PathLike) -> bool:
    try:
        T5Files(Path(path))
    except CheckpointError:
        return False
    return True


def convert_control(source: str | os.PathLike, target: str, out: str | os.PathLike, weights_only: bool = False,
                    progress: CountProgress | None = None) -> list[LayerError]:
    """Write the ControlNet of `source` alone, copies of blocks in the format `target`; returns what each layer lost.

    The projections around the copies stay in 16 bits. target: a key of TARGETS. weights_only: as `convert`. The file
    is complete or absent. Raises CheckpointError for other files, ValueError for a width that the
    format does not allow and for a file that is quantised already.
    """
    refuse_quantizing_twice(open_network(source, expected=CONTROL_FILE).tensors, source)
    found = read_control(source, torch.float32)
    stored = read_control(source).dtype
    state = {file_name(name): tensor for name, tensor in found.state_dict.items()}
    rest = stored if stored in SIXTEEN else torch.float16
    errors = quantize_matrices(state, quantizer_for(target, weights_only), rest, found.path, progress, CONTROL_MATRICES)
    base = to_header(found.config) if found.knows_base else {}
    write(Path(out), state, {TOLD: target, "kind": CONTROL_FORMAT, **base})
    return errors


def convert_t5(source: str | os.PathLike, target: str, out: str | os.PathLike, weights_only: bool = False,
               progress: CountProgress | None = None) -> list[LayerError]:
    """Write a T5 encoder as one file with the matrices of its blocks in format `target`; returns what each layer lost.

    Read matrix by matrix, so that it takes the size of the result. The rest stays in 16 bits: as in the source, else
    bfloat16. Arguments and errors as `convert_control`. The tokenizer of a folder is not in the file.
    """
    files, quantizer = T5Files(Path(source)), quantizer_for(target, weights_only)
    if files.quantized:
        raise ValueError(f"its layers are quantised already; use the original weights: {source}")
    names = [name for name in files.shapes if name.endswith(".weight")]
    matrices = [name for name in names if T5_MATRICES.fullmatch(name)]
    state: dict[str, Tensor] = {}
    errors = []
    for name in names:
        tensor = files.read(name)
        if name in matrices:
            layer = name.removesuffix(".weight")
            quantized, error = quantized_layer(layer, tensor.float(), quantizer, files.path)
            errors.append(error)
            state.update({f"{layer}.{own}": each for own, each in quantized.entries().items()})
            if progress:
                progress(len(errors), len(matrices))
        else:
            kept = tensor.dtype if tensor.dtype in SIXTEEN else torch.bfloat16
            check_finite(name, tensor, files.path, T5_FILE, kept)
            state[name] = tensor.to(kept, copy=True)
    write(Path(out), state, {TOLD: target})
    return errors


def quantizer_for(target: str, weights_only: bool) -> Callable[[str, Tensor], Quantized]:
    """(layer, weight) -> Quantized. ValueError for fp4, whose settings are those of a transformer's layers, and where
    `weights_only` has no effect."""
    if target == "fp4" or target not in TARGETS:
        known = ", ".join(name for name in TARGETS if name != "fp4")
        raise ValueError(f"{target} is for transformers; quantise a ControlNet or T5 as one of {known}")
    further = host_options(target, weights_only)
    return lambda layer, weight: TARGETS[target].quantize(weight, further)


def refuse_quantizing_twice(names: Iterable[str], path: str | os.PathLike) -> None:
    if any(name.endswith(f".{QUANTIZATION_MARK}") for name in names):
        raise ValueError("its layers are quantised already; use the original weights, quantising twice would add both "
                         f"errors: {path}")


def write(path: Path, tensors: dict[str, Tensor], told: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, {"format": "pt", **told})
