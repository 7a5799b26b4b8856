"""ControlNet weights in files: bundled with their base, alone, or in the layout of diffusers' research project."""
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..config import PixArtConfig
from ..quantize.read import with_dequantized
from ..weights.errors import CheckpointError
from ..weights.reader import Weights
from ..weights.safetensors_file import write_tensors
from ..weights.values import refuse_quantized
from .configure import heads_of
from .detect import MARKS, Plan, Shapes, compression_of, reference_shapes, refuse_absent
from .families import is_lora, recognise
from .header import config_from_header, to_header
from .layouts import diffusers_names, file_name, file_shapes, reference_name
from .load import common_dtype, dtype_name, gather_tensors, read_config, refuse_differences, widened_dtype
from .read import open_network
from .save import plain_tensor

if TYPE_CHECKING:
    from ..model.attention import Attend
    from ..model.controlnet import PixArtControlNet
    from ..model.layers import Ops

CONTROL_FILE = "a PixArt ControlNet (bundled with its base model, alone, or in diffusers layout)"
CONTROL_CLASSES = ("PixArtControlNetAdapterModel", "PixArtControlNetTransformerModel", "PixArtTransformer2DModel")
CONTROL_FORMAT = "pixart-controlnet"
OURS = re.compile(r"controlnet\.(\d{1,9})\.(copied_block\.(.+)|after_proj\..+|before_proj\..+)")
THEIRS = re.compile(r"controlnet_blocks\.(\d{1,9})\.(transformer_block\.(.+)|after_proj\..+|before_proj\..+)")
CONTROL_MARK = re.compile(r"(.*?)(controlnet|controlnet_blocks)\.0\.before_proj\.weight")
CONTROL_FAMILIES = {"sd": "PixArt-alpha or delta (SD latents)", "sdxl": "PixArt-Sigma (SDXL latents)"}
CONTROL_SAMPLE = "controlnet.0.copied_block.attn.proj.weight"


@dataclass(frozen=True)
class ControlCheckpoint:
    """Weights of one ControlNet. `state_dict` has reference names, tables without `.weight`.

    `config` is that of its base model where the file tells it (`knows_base`); otherwise width, heads and block
    options are right and the rest stands at its defaults.
    """

    config: PixArtConfig
    blocks: int
    state_dict: dict[str, Tensor]
    knows_base: bool
    description: str
    path: Path

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the large matrices."""
        return self.state_dict[CONTROL_SAMPLE].dtype


def read_control(path: str | os.PathLike, dtype: torch.dtype | None = None,
                 device: torch.device | str = "cpu") -> ControlCheckpoint:
    """Read a ControlNet in any layout; dtype and device as in `read_checkpoint`. Quantised layers are dequantised.

    Raises CheckpointError for another model, missing parts and wrong shapes; it is a FileNotFoundError too where
    there is no file.
    """
    return _read(path, lambda weights, plan: dtype or common_dtype(weights, plan), device)


def _read(path: str | os.PathLike, dtype_for: Callable[[Weights, Plan], torch.dtype | None],
          device: torch.device | str) -> ControlCheckpoint:
    """`read_control` in the data type that `dtype_for` picks; None: as they are."""
    weights, layout, plan = open_control(path)
    shapes = reference_shapes(plan, weights.tensors, weights.path)
    blocks = count_control_blocks(shapes, weights.path)
    config, knows_base = _configure(weights, layout, shapes, blocks)
    refuse_differences(shapes, control_shapes(config, blocks), f"a ControlNet with {blocks} blocks of width "
                       f"{config.hidden}", weights.path)
    state_dict = gather_tensors(weights, plan, dtype_for(weights, plan), torch.device(device), CONTROL_FILE)
    description = describe_control(config, blocks, knows_base, dtype_name(weights.tensors[plan[CONTROL_SAMPLE][0]]),
                                   layout)
    return ControlCheckpoint(config, blocks, state_dict, knows_base, description, weights.path)


def require_fitting_control(path: str | os.PathLike, base: PixArtConfig) -> None:
    """CheckpointError for a ControlNet of a model of another width or family than `base`, by names and shapes alone.

    Also what `read_control` raises for a file that is none. Reads no weights.
    """
    weights, layout, plan = open_control(path)
    shapes = reference_shapes(plan, weights.tensors, weights.path)
    own, knows_base = _configure(weights, layout, shapes, count_control_blocks(shapes, weights.path))
    if (own.hidden, own.heads) != (base.hidden, base.heads):
        found = (f"a ControlNet {own.hidden} wide with {own.heads} heads, beside a model {base.hidden} wide with "
                 f"{base.heads}")
    elif knows_base and own.latent_space != base.latent_space:
        found = (f"a ControlNet for {CONTROL_FAMILIES[own.latent_space]}, beside a model of "
                 f"{CONTROL_FAMILIES[base.latent_space]}")
    else:
        return
    raise CheckpointError(weights.path, found, "the ControlNet that was made for this model")


def load_control(path: str | os.PathLike, dtype: torch.dtype | None = None, device: torch.device | str = "cpu",
                 ops: "Ops | None" = None, attend: "Attend | None" = None) -> "PixArtControlNet":
    """Open a ControlNet as a model, in evaluation mode, without memory beyond its weights.

    8-bit weights become bfloat16 unless dtype is given.
    """
    from ..model.attention import sdpa
    from ..model.controlnet import PixArtControlNet
    checkpoint = _read(path, lambda *found: dtype or widened_dtype(*found) or common_dtype(*found), device)
    control = PixArtControlNet(checkpoint.config, checkpoint.blocks, ops=ops or nn, attend=attend or sdpa,
                               dtype=checkpoint.dtype, device="meta")
    control.load_state_dict(checkpoint.state_dict, strict=True, assign=True)
    return control.eval()


def save_control(path: str | os.PathLike, control: "PixArtControlNet", dtype: torch.dtype | None = None,
                 metadata: Mapping[str, str] | None = None) -> Path:
    """Save a ControlNet alone as safetensors, with the configuration of its base in the header.

    dtype: convert floating-point tensors. metadata: further header entries.
    """
    path = Path(path)
    tensors = {file_name(name): plain_tensor(name, tensor, dtype) for name, tensor in control.state_dict().items()}
    header = {"format": "pt", **(metadata or {}), "kind": CONTROL_FORMAT, **to_header(control.config)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, header)
    return path


def open_control(path: str | os.PathLike) -> tuple[Weights, str, Plan]:
    """The opened file with what `find_control` finds in it; no tensor is read. Raises CheckpointError."""
    weights = with_dequantized(open_network(path, classes=CONTROL_CLASSES, expected=CONTROL_FILE), CONTROL_FILE)
    return weights, *find_control(weights)


def find_control(weights: Weights) -> tuple[str, dict[str, tuple[str, ...]]]:
    """Layout ("bundle", "control-only" or "diffusers"), and reference name -> names in the file that make it up."""
    mark = next((match for name in weights.tensors if (match := CONTROL_MARK.fullmatch(name))), None)
    if mark is None:
        raise CheckpointError(weights.path, _found_instead(weights.tensors), CONTROL_FILE)
    prefix, kind = mark[1], mark[2]
    names = [name[len(prefix):] for name in weights.tensors if name.startswith(f"{prefix}{kind}.")]
    plan = _plan_ours(names, weights.path) if kind == "controlnet" else _plan_theirs(names, weights.path)
    plan = {ours: tuple(prefix + part for part in parts) for ours, parts in plan.items()}
    refuse_absent(plan, weights.tensors, weights.path)
    refuse_quantized(names, weights.path, CONTROL_FILE)
    bundled = any(name.endswith(mark) for mark in MARKS.values() for name in weights.tensors)
    return "diffusers" if kind == "controlnet_blocks" else "bundle" if bundled else "control-only", plan


def _found_instead(names: Mapping[str, object]) -> str:
    if is_lora(names):
        return "a LoRA"
    if any(name.endswith(mark) for mark in MARKS.values() for name in names):
        return "a PixArt model without a ControlNet in it"
    family = recognise(names)
    return f"it looks like {family.name}" if family else f"{len(names)} tensors, none of them of a PixArt ControlNet"


def _plan_ours(names: list[str], path: Path) -> dict[str, tuple[str, ...]]:
    _refuse_unknown([name for name in names if not OURS.fullmatch(name)], path)
    return {file_name(name): (name,) for name in names}


def _plan_theirs(names: list[str], path: Path) -> dict[str, tuple[str, ...]]:
    """The blocks are those of a diffusers PixArt, so its name mapping applies inside them."""
    plan: dict[str, tuple[str, ...]] = {}
    unknown = []
    for name in names:
        match = THEIRS.fullmatch(name)
        place = reference_name(f"transformer_blocks.0.{match[3]}") if match and match[3] else None
        if match and match[3] is None:
            plan[f"controlnet.{match[1]}.{match[2]}"] = (name,)
        elif match and place:
            parts = diffusers_names(place[0]) or ()
            stem = f"controlnet_blocks.{match[1]}.transformer_block."
            inner = place[0].removeprefix("blocks.0.")
            plan[f"controlnet.{match[1]}.copied_block.{inner}"] = tuple(
                stem + part.removeprefix("transformer_blocks.0.") for part in parts)
        else:
            unknown.append(name)
    _refuse_unknown(unknown, path)
    return plan


def _refuse_unknown(names: list[str], path: Path) -> None:
    if names:
        raise CheckpointError(path, f"{len(names)} tensors of an unknown kind of ControlNet, the first is {names[0]}",
                              CONTROL_FILE)


def count_control_blocks(shapes: Shapes, path: Path) -> int:
    """Number of copies, by the highest index; CheckpointError where the file has fewer tensors than that."""
    blocks = 1 + max(int(match[1]) for name in shapes if (match := OURS.fullmatch(name)))
    if blocks > len(shapes):
        raise CheckpointError(path, f"a tensor of control block {blocks - 1} in a file of {len(shapes)} tensors",
                              "every block from 0 on", "The file is incomplete or damaged.")
    return blocks


def _configure(weights: Weights, layout: str, shapes: Shapes, blocks: int) -> tuple[PixArtConfig, bool]:
    """The base's configuration from the header or the bundled base; else what the blocks themselves show."""
    header = config_from_header(weights.metadata, weights.path)
    if header is not None or layout == "bundle":
        config = header or read_config(weights.path)
        if blocks >= config.depth:
            raise CheckpointError(weights.path, f"{blocks} control blocks for a base of {config.depth} blocks",
                                  "fewer control blocks than base blocks")
        return config, True
    if CONTROL_SAMPLE not in shapes:
        raise CheckpointError(weights.path, f"a ControlNet without {CONTROL_SAMPLE}", todo="The file is incomplete.")
    hidden = shapes[CONTROL_SAMPLE][0] if shapes[CONTROL_SAMPLE] else 0
    factors = {int(match[1]): shape[-1] if shape else 0 for name, shape in shapes.items()
               if name.endswith(".copied_block.attn.sr.weight") and (match := OURS.fullmatch(name))}
    try:
        return PixArtConfig(depth=max(PixArtConfig.depth, blocks + 1), hidden=hidden, micro_conditioning=False,
                            heads=heads_of(hidden, weights.settings, weights.path),
                            kv_compression=compression_of(factors, weights.path),
                            qk_norm="controlnet.0.copied_block.attn.q_norm.weight" in shapes), False
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(weights.path, str(error), CONTROL_FILE) from error


def control_shapes(config: PixArtConfig, blocks: int) -> Mapping[str, tuple[int, ...]]:
    """Every tensor of a ControlNet with this many copies, in reference names, as the network itself has it."""
    from ..model.controlnet import PixArtControlNet
    deep = replace(config, depth=max(config.depth, blocks + 1))         # of the base; no shape depends on it
    return file_shapes(PixArtControlNet(deep, blocks, device="meta"))


def describe_control(config: PixArtConfig, blocks: int, knows_base: bool, dtype: str, layout: str) -> str:
    """One line: "ControlNet of 13 blocks, width 1152, for PixArt-alpha 1024 with 28 blocks, fp32, bundle layout"."""
    words = [f"ControlNet of {blocks} blocks", f"width {config.hidden}"]
    if knows_base:
        family = "PixArt-alpha" if config.latent_space == "sd" else "PixArt-Sigma"
        words.append(f"for {family} {config.resolution} with {config.depth} blocks")
    return ", ".join([*words, dtype, f"{layout} layout"])
