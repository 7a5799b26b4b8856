"""Recognising a table of weights: its layout and prefix, and every fact that names and shapes can tell."""
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..config import KVCompression
from ..weights.errors import PIXART_FILE, CheckpointError
from ..weights.values import refuse_quantized
from .families import RELATIVES, is_lora, recognise
from .header import CONFIG_KEY
from .layouts import NULL_CAPTION, POSITION_TABLE, plan_reference

Shapes = Mapping[str, tuple[int, ...]]
Plan = Mapping[str, tuple[str, ...]]        # reference name -> names in the file that make it up

MARKS = {"reference": "t_block.1.weight", "diffusers": "adaln_single.linear.weight"}
WRAPPER_PREFIX = re.compile(r"((module|model|diffusion_model|net|base_model|transformer|_orig_mod)\.)*")
# Prefixes of other models in a file whose transformer has no prefix.
COMPANIONS = ("controlnet.", "controlnet_blocks.", "vae.", "first_stage_model.", "text_encoders.", "text_encoder.",
              "cond_stage_model.", "conditioner.", "model_ema.", "model_sampling.")
KNOWN_SCALES = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0)


@dataclass(frozen=True)
class Layout:
    """How a file names its tensors."""

    name: str                             # "reference" or "diffusers"
    plan: Plan
    ignored: tuple[str, ...]              # tensors of other models in the same file
    positions: str | None                 # name in the file of the stored position table
    config: str | None = None             # name in the file of the configuration that a tensor holds


@dataclass(frozen=True)
class Facts:
    """What names and shapes tell for certain; None where they cannot."""

    depth: int
    hidden: int
    patch: int
    channels: int
    learned_variance: bool
    caption_width: int
    micro_conditioning: bool
    qk_norm: bool
    kv_compression: KVCompression | None
    caption_tokens: int | None
    base_size: int | None
    position_scale: float | None


def find_layout(tensors: Mapping[str, Tensor], path: Path) -> Layout:
    """Recognise a PixArt transformer among tensors. Raises CheckpointError that says what else they are."""
    if is_lora(tensors):
        raise CheckpointError(path, "a LoRA", todo="Use the LoRA loader with a PixArt model.")
    for name, mark in MARKS.items():
        prefix = _prefix(tensors, mark, path)
        if prefix is None:
            continue
        own = [key for key in tensors if key.startswith(prefix)]
        if not prefix:
            own = [key for key in own if not key.startswith(COMPANIONS)]
        own_set = set(own)
        ignored = tuple(key for key in tensors if key not in own_set)
        bare = [key[len(prefix):] for key in own]
        config = prefix + CONFIG_KEY if CONFIG_KEY in bare else None
        bare = [key for key in bare if key != CONFIG_KEY]
        _refuse_relatives(bare, path)
        plan = plan_reference(dict.fromkeys(bare)) if name == "diffusers" else _plan_plain(bare)
        plan = {ours: tuple(prefix + theirs for theirs in parts) for ours, parts in plan.items()}
        positions = prefix + POSITION_TABLE if POSITION_TABLE in bare else None
        if name == "diffusers" and _is_allegro(tensors, plan):
            raise CheckpointError(path, "it looks like Allegro (video), a relative of PixArt that is not supported")
        if name == "reference" or _has_patch_convolution(tensors, plan):
            refuse_quantized(bare, path, PIXART_FILE)
            return Layout(name, plan, ignored, positions, config)
    family = recognise(tensors)
    if family is None:
        refuse_quantized(tensors, path, PIXART_FILE)
    found = f"it looks like {family.name}" if family else _strangers(tensors)
    raise CheckpointError(path, found, todo=family.todo if family else "")


def _plan_plain(names: list[str]) -> dict[str, tuple[str, ...]]:
    """Files in reference layout, with the community's name of the null caption and our parameter names of tables."""
    aliases = {"caption_projection.y_embedding": NULL_CAPTION}
    return {aliases.get(name, name).replace("scale_shift_table.weight", "scale_shift_table"): (name,)
            for name in names if name != POSITION_TABLE}


def _prefix(tensors: Mapping[str, Tensor], mark: str, path: Path) -> str | None:
    """The prefix of the transformer's names; None without a transformer."""
    found = {name[:-len(mark)] for name in tensors if name.endswith(mark)}
    found = {prefix for prefix in found if not prefix or prefix.endswith(".")}
    known = sorted((prefix for prefix in found if WRAPPER_PREFIX.fullmatch(prefix)), key=len)
    if known:
        return known[0]
    if len(found) > 1:
        raise CheckpointError(path, f"{len(found)} models in one file, under {', '.join(sorted(found))}",
                              "one PixArt transformer", "Save the one you want alone.")
    return found.pop() if found else None


def _has_patch_convolution(tensors: Mapping[str, Tensor], plan: Mapping[str, tuple[str, ...]]) -> bool:
    """LTX-Video shares `adaln_single` with diffusers PixArt, but embeds patches by a Linear."""
    parts = plan.get("x_embedder.proj.weight")
    return parts is not None and tensors[parts[0]].ndim == 4


def _is_allegro(tensors: Mapping[str, Tensor], plan: Mapping[str, tuple[str, ...]]) -> bool:
    """Allegro has every name of a diffusers PixArt; its width is 2304 and it learns no variance (2 x 2 x 4 outputs)."""
    parts = plan.get("final_layer.linear.weight")
    return parts is not None and tuple(tensors[parts[0]].shape) == (16, 2304)


def _refuse_relatives(names: list[str], path: Path) -> None:
    family = recognise(names, RELATIVES)
    if family is not None:
        kind = "a network of its own" if family.todo else "a relative of PixArt that is not supported"
        raise CheckpointError(path, f"it looks like {family.name}, {kind}", todo=family.todo)


def _strangers(tensors: Mapping[str, Tensor]) -> str:
    names = sorted(tensors)
    return f"{len(names)} tensors of an unknown model, such as {', '.join(names[:3])}"


def refuse_absent(plan: Plan, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse a file in which a part of a stacked tensor is missing. Raises CheckpointError."""
    absent = [part for parts in plan.values() for part in parts if part not in tensors]
    if absent:
        raise CheckpointError(path, f"{len(absent)} tensors are missing, the first is {absent[0]}",
                              todo="The file is incomplete; download it again.")


def reference_shapes(plan: Plan, tensors: Mapping[str, Tensor], path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes under reference names. Raises as `refuse_absent` does."""
    refuse_absent(plan, tensors, path)
    shapes = {}
    for name, parts in plan.items():
        pieces = [tuple(tensors[part].shape) for part in parts]
        stackable = all(piece[1:] == pieces[0][1:] for piece in pieces) and pieces[0]
        shapes[name] = (sum(piece[0] for piece in pieces), *pieces[0][1:]) if stackable else pieces[0]
    return shapes


def measure_shapes(shapes: Shapes, positions: Tensor | None, path: Path) -> Facts:
    """Read the facts off shapes in reference names, and base and scale off the stored position table (1, N, D)."""
    hidden, channels, patch = _shape(shapes, "x_embedder.proj.weight", 4, path)[:3]
    outputs = _shape(shapes, "final_layer.linear.weight", 2, path)[0] // patch ** 2
    caption_width = _shape(shapes, "y_embedder.y_proj.fc1.weight", 2, path)[1]
    if outputs not in (channels, 2 * channels):
        raise CheckpointError(path, f"{channels} channels go in and {outputs} come out",
                              "as many out as in, or twice as many")
    depth = count_blocks(shapes, path)
    base, scale = measure_positions(positions, hidden, path)
    null = shapes.get(NULL_CAPTION)
    return Facts(depth=depth, hidden=hidden, patch=patch, channels=channels, caption_width=caption_width,
                 learned_variance=outputs == 2 * channels,
                 qk_norm=any(name.endswith(".attn.q_norm.weight") for name in shapes),
                 micro_conditioning="ar_embedder.mlp.0.weight" in shapes, kv_compression=_compression(shapes, path),
                 caption_tokens=null[0] if null else None, base_size=base, position_scale=scale)


def count_blocks(shapes: Shapes, path: Path) -> int:
    """Number of blocks, by the highest index. Raises CheckpointError for none, or fewer tensors than that."""
    depth = 1 + max((int(match[1]) for name in shapes if (match := re.match(r"blocks\.(\d{1,9})\.", name))), default=-1)
    if depth == 0:
        raise CheckpointError(path, "no transformer block in it")
    if depth > len(shapes):
        raise CheckpointError(path, f"a tensor of block {depth - 1} in a file of {len(shapes)} tensors",
                              "every block from 0 on", "The file is incomplete or damaged.")
    return depth


def _shape(shapes: Shapes, name: str, dimensions: int, path: Path) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None:
        raise CheckpointError(path, f"a part of a PixArt model without {name}", todo="The file is incomplete.")
    if len(shape) != dimensions:
        raise CheckpointError(path, f"{name} has shape {shape}", f"{dimensions} dimensions there",
                              "The file is quantised, or of a video model.")
    if 0 in shape:
        raise CheckpointError(path, f"{name} has shape {shape}, without a single number", "weights there")
    return shape


def _compression(shapes: Shapes, path: Path) -> KVCompression | None:
    """Only the mode "conv" has weights; "ave" and "uniform" leave no trace in a file."""
    layers = {int(match[1]): shape[-1] if shape else 0 for name, shape in shapes.items()
              if (match := re.fullmatch(r"blocks\.(\d{1,9})\.attn\.sr\.weight", name))}
    return compression_of(layers, path)


def compression_of(factors: Mapping[int, int], path: Path) -> KVCompression | None:
    """Compression by convolution with these factors by layer; None without any."""
    if not factors:
        return None
    factor = next(iter(factors.values()))
    if factor < 2:
        raise CheckpointError(path, f"key/value compression by {factor}", "a factor of 2 or more")
    return KVCompression("conv", factor, tuple(sorted(factors)))


def measure_positions(table: Tensor | None, hidden: int, path: Path) -> tuple[int | None, float | None]:
    """Base size and scale from a stored table (1, base^2, D), whose second token lies at column 1 / scale.

    Its channel k of the first quarter is sin(10000^(-4k/D) / scale); a low-frequency channel gives the
    scale without ambiguity, where the first one gives sin(1 / scale), the same for two scales.
    """
    if table is None:
        return None, None
    base = math.isqrt(table.shape[1]) if table.ndim == 3 and len(table) and hidden >= 4 else 0
    if base < 2 or base ** 2 != table.shape[1] or table.shape[2] != hidden or not table.is_floating_point():
        raise CheckpointError(path, f"{POSITION_TABLE} has shape {tuple(table.shape)}",
                              f"(1, a square number, {hidden})")
    quarter = hidden // 4
    channel = quarter // 4
    sine = float(table[0, 1, channel])
    angle = math.asin(max(-1.0, min(1.0, sine))) if math.isfinite(sine) else 0.0
    if angle <= 0:
        raise CheckpointError(path, f"{POSITION_TABLE} is not a table of sines and cosines",
                              todo="Remove it from the file and choose a variant.")
    scale = 10000 ** (-channel / quarter) / angle
    nearest = min(KNOWN_SCALES, key=lambda known: abs(known - scale))
    return base, nearest if abs(nearest / scale - 1) < 0.02 else scale
