"""A PixArt transformer with the matrices of its blocks packed; everything else stays in 16 bits."""
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..atomic import replacing
from ..checkpoint.header import to_header, to_tensors
from ..checkpoint.layouts import NULL_CAPTION, POSITIONS
from ..checkpoint.load import OpenCheckpoint, open_checkpoint
from ..config import PixArtConfig
from .format import Options
from .formats import TARGETS
from .report import LayerError, error_of

logger = logging.getLogger(__name__)

MATRICES = re.compile(r"blocks\.\d+\.(attn\.(qkv|proj)|cross_attn\.(q_linear|kv_linear|proj)|mlp\.fc[12])\.weight")
UNPACKED = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
TOLD = "pixart_packed"                  # header entry: the target that a file was made for
Progress = Callable[[int, int], None]


def convert(source: str | os.PathLike, target: str, out: str | os.PathLike, variant: str | PixArtConfig = "auto",
            weights_only: bool = False, progress: Progress | None = None) -> list[LayerError]:
    """Write `source`, a PixArt transformer in any layout, in the format `target`; returns what each layer lost.

    target: a key of TARGETS, or fp16, bf16, fp32, which unpack a packed file and lose nothing but what rounding
    loses. weights_only: tell the host to unpack weights before it multiplies, so that its kernels do not round their
    inputs too; for float8, nvfp4 and mxfp8. progress(done, total), counted in layers, may raise to stop. The file is
    written beside its place and renamed.
    Raises CheckpointError for a file that is no PixArt, ValueError for an unknown target, for one that the width of
    the model does not allow, and for a file that is packed already.
    """
    if target not in TARGETS and target not in UNPACKED:
        raise ValueError(f"there is no format {target!r}; use {', '.join((*TARGETS, *UNPACKED))}")
    if weights_only and (target in UNPACKED or TARGETS[target].format.rounds_inputs):
        raise ValueError(f"weights_only has no effect with {target}: " + (
            "nothing is packed" if target in UNPACKED else "the host rounds the inputs of its layers in any case"))
    checkpoint = open_checkpoint(source, variant)
    if target in TARGETS and checkpoint.packed_as:
        raise ValueError(f"its layers are packed as {' and '.join(checkpoint.packed_as)} already; use the original "
                         f"weights, packing twice would add both errors. File: {source}")
    found = checkpoint.read(UNPACKED.get(target, torch.float32))
    state = dict(found.state_dict)
    if not found.has_null_caption:
        del state[NULL_CAPTION]
    if target in UNPACKED:
        write(Path(out), state, checkpoint.config, {})
        return []
    further: Options = {"full_precision_matrix_mult": True} if weights_only else {}
    errors = pack(state, target, further, kept_dtype(checkpoint), found.path, progress)
    write(Path(out), state, checkpoint.config, {TOLD: target})
    return errors


def pack(state: dict[str, Tensor], target: str, further: Options, rest: torch.dtype, path: Path,
         progress: Progress | None) -> list[LayerError]:
    """In place: float32 tensors to those of the packed file. rest: type of what is not packed, tables excepted."""
    matrices = [name for name in state if MATRICES.fullmatch(name)]
    for name in state.keys() - set(matrices):
        state[name] = state[name] if name.endswith("scale_shift_table") else state[name].to(rest)
    errors = []
    for done, name in enumerate(matrices, 1):
        layer, weight = name.removesuffix(".weight"), state.pop(name)
        try:
            packed = TARGETS[target].pack(weight, further)
        except ValueError as error:
            raise ValueError(f"{layer}: {error}. Choose another format. File: {path}") from error
        state.update({f"{layer}.{own}": tensor for own, tensor in packed.entries().items()})
        errors.append(error_of(layer, weight, packed))
        if progress:
            progress(done, len(matrices))
    return errors


def kept_dtype(checkpoint: OpenCheckpoint) -> torch.dtype:
    """Of what is not packed: as in the file where that has 16 bits, else float16, which keeps more digits."""
    return checkpoint.dtype if checkpoint.dtype in (torch.float16, torch.bfloat16) else torch.float16


def write(path: Path, tensors: dict[str, Tensor], config: PixArtConfig, told: dict[str, str]) -> None:
    """With the configuration in the header, and the position table, by which other loaders know the trained size."""
    tensors = {**tensors, POSITIONS: to_tensors(config)[POSITIONS]}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, beside,
                  {"format": "pt", **told, **to_header(config)})
    logger.info("%s: %.2f GB", path, path.stat().st_size / 1e9)
