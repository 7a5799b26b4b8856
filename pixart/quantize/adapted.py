"""A transformer in FP4 with adaptive rounding, block after block, resumed where it was stopped."""
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch

from ..checkpoint.load import OpenCheckpoint
from ..files.atomic import replacing
from ..model.block import PixArtBlock
from ..model.transformer import PixArtTransformer
from ..progress import Progress
from ..weights.locate import Kind
from ..weights.reader import open_weights
from ..weights.safetensors_file import write_tensors
from .adaptive import Adaptation, adapt_block
from .calibrate import Inputs, load_inputs, save_inputs
from .convert import MATRICES, LayerOptions, convert_by
from .format import FormatOptions, Quantized
from .formats import TARGETS
from .read import QuantizedWeights, with_dequantized
from .report import LayerError

logger = logging.getLogger(__name__)

ROUNDED_BLOCK = Kind("a rounded block of this program")
ABOUT = "about.json"            # what the parts of a run were made for


def parts_folder(out: str | os.PathLike) -> Path:
    """The folder beside the result where a run keeps what it has done."""
    return Path(out).with_suffix(".parts")


def convert_adapted(checkpoint: OpenCheckpoint, out: str | os.PathLike, record: Callable[[PixArtTransformer], Inputs],
                    about: Mapping[str, object], adaptation: Adaptation | None = None,
                    settings: LayerOptions | None = None, device: torch.device | str = "cpu",
                    told: Progress | None = None) -> list[LayerError]:
    """Write a checkpoint in fp4 with learned rounding; returns what each layer lost.

    record(model) gives the calibration data, about: what else these depend on. The input of a block comes from the
    rounded blocks before it, its target output from the network in full precision. Finished blocks are kept in
    `parts_folder(out)` until the file is written, and a further call with the same arguments goes on from there;
    ValueError where a call with others was stopped. told(stage, done, total) may raise to stop.
    """
    adaptation, told, parts = adaptation or Adaptation(), told or (lambda stage, done, total: None), parts_folder(out)
    open_parts(parts, {**about, **asdict(adaptation), "weights": weights_digest(checkpoint),
                       "settings": chosen(checkpoint, settings)})
    model = checkpoint.load(torch.float32, device).requires_grad_(False)
    inputs = recorded(parts / "calibration.safetensors", lambda: record(model))
    done: dict[str, Quantized] = {}
    exact = rounded = inputs.tokens
    for index, block in enumerate(model.blocks):
        assert isinstance(block, PixArtBlock)
        wanted = replace(inputs, tokens=exact).through(block)
        own = block_options(block, f"blocks.{index}", checkpoint, settings)
        path, given = parts / f"block-{index:03}.safetensors", replace(inputs, tokens=rounded)
        if not path.exists():
            stage = f"block {index + 1} of {len(model.blocks)}"
            save_block(path, adapt_block(block, own, given, wanted, adaptation,
                                         lambda step, total, stage=stage: told(stage, step, total)))    # type: ignore
        layers = load_block(path)
        for layer, quantized in layers.items():
            block.get_parameter(f"{layer}.weight").copy_(quantized.dequantized())
        exact, rounded = wanted, given.through(block)
        logger.info("block %d: its output is %.2f %% off", index, 100 * float((rounded - exact).norm() / exact.norm()))
        done |= {f"blocks.{index}.{layer}": quantized for layer, quantized in layers.items()}
    errors = convert_by(lambda layer, weight: done[layer], checkpoint, "fp4", out)
    shutil.rmtree(parts)
    return errors


def open_parts(parts: Path, about: Mapping[str, object]) -> None:
    """A folder for the parts of this run, or the one that a run with the same settings left."""
    parts.mkdir(parents=True, exist_ok=True)
    path, written = parts / ABOUT, json.dumps(about, sort_keys=True, default=str)
    if not path.exists() and any(parts.iterdir()):
        raise ValueError(f"this folder holds something else, and is needed for what is done so far; choose another "
                         f"--out, or move it: {parts}")
    if path.exists() and path.read_text(encoding="utf-8") != written:
        raise ValueError("a run with other settings was stopped here; repeat these to go on with it, or delete its "
                         f"folder, or choose another --out. Folder: {parts}")
    with replacing(path) as beside:
        beside.write_text(written, encoding="utf-8")


def weights_digest(checkpoint: OpenCheckpoint) -> str:
    """A digest of a few of its tensors, to tell other weights under the same name apart."""
    tensors, plan = checkpoint.weights.tensors, checkpoint.layout.plan
    taken = [tensors[parts[0]] for name, parts in sorted(plan.items()) if name.endswith(("proj.weight", "fc1.bias"))]
    summary = hashlib.sha256()
    for tensor in taken:
        summary.update(tensor.flatten()[:256].float().numpy().tobytes())
    return summary.hexdigest()[:16]


def chosen(checkpoint: OpenCheckpoint, settings: LayerOptions | None) -> list[object]:
    """What the layers of a block are to be quantised with, as plain values."""
    options = settings or TARGETS["fp4"].settings
    return [sorted(options(layer, checkpoint.config).items()) for layer in ("attn.qkv", "mlp.fc1", "mlp.fc2")]


def recorded(path: Path, record: Callable[[], Inputs]) -> Inputs:
    if not path.exists():
        save_inputs(path, record())
    return load_inputs(path)


def block_options(block: PixArtBlock, name: str, checkpoint: OpenCheckpoint,
                  settings: LayerOptions | None) -> dict[str, FormatOptions]:
    """The settings of every matrix of a block, by the name of its layer in the block."""
    target = TARGETS["fp4"]
    further = settings or target.settings
    return {key.removesuffix(".weight"): target.options((weight.shape[0], weight.shape[1]), further(
                f"{name}.{key.removesuffix('.weight')}", checkpoint.config))
            for key, weight in block.named_parameters() if MATRICES.fullmatch(f"{name}.{key}")}


def save_block(path: Path, layers: Mapping[str, Quantized]) -> None:
    write_tensors(path, {f"{layer}.{own}": tensor.cpu() for layer, quantized in layers.items()
                         for own, tensor in quantized.entries().items()})


def load_block(path: Path) -> dict[str, Quantized]:
    """The layers that `save_block` wrote. CheckpointError for a damaged file."""
    weights = with_dequantized(open_weights(path, ROUNDED_BLOCK), ROUNDED_BLOCK.expected)
    assert isinstance(weights, QuantizedWeights)
    return {layer: weights.quantized(layer) for layer in weights.layers}
