"""Files of PT-DiT: the published text-to-image layout, and its own, whose header says what the weights cannot."""
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..checkpoint.configure import heads_of
from ..checkpoint.detect import Shapes
from ..checkpoint.header import CONFIG_FIELDS, LONGEST_CONFIG
from ..checkpoint.layouts import file_name, parameter_name
from ..checkpoint.load import common_dtype, dtype_name, gather_tensors, refuse_differences, widened_dtype
from ..checkpoint.save import plain_tensor
from ..weights.errors import CheckpointError
from ..weights.locate import Kind
from ..weights.reader import Weights, open_weights
from ..weights.safetensors_file import write_tensors
from ..weights.settings import Check, checked_entries, flag, one_of, parse_json, whole
from ..weights.values import refuse_quantized
from .config import AUTOENCODERS, PTDiTConfig
from .layout import OWN_MARK, PUBLISHED_POSITIONS, pt_dit_mark, pt_dit_shapes, published_names, published_pt_dit_shapes

if TYPE_CHECKING:
    from ..model.attention import Attend
    from ..model.layers import Ops
    from .transformer import PTDiT

logger = logging.getLogger(__name__)

PT_DIT_KEY = "pixart_pt_dit"           # of the header entry, and of the tensor that a host's file has instead
PT_DIT_VERSION = 1
PT_DIT_FILE = Kind("a PT-DiT transformer (the published .pt, or a file of python -m pixart train pt-dit)")
PT_DIT_FIELDS: dict[str, Check] = {
    **CONFIG_FIELDS, "version": whole(1, 1 << 30), "window": whole(1, 256), "proxy": whole(1, 256), "shifted": flag,
    "flow_side": whole(1, 1 << 16), "autoencoder": one_of(*AUTOENCODERS)}


@dataclass(frozen=True)
class OpenPTDiT:
    """A PT-DiT in a file that is mapped and recognised, but not read. plan: our name -> the names in the file."""

    weights: Weights
    config: PTDiTConfig
    plan: Mapping[str, tuple[str, ...]]
    own: bool                    # our own layout, not the published one

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the large matrices in the file."""
        return self.weights.tensors[self.plan["blocks.0.attn.proj.weight"][0]].dtype

    @property
    def description(self) -> str:
        """One line for display."""
        c = self.config
        words = [f"PT-DiT {c.resolution}", f"{c.depth} blocks", f"width {c.hidden}",
                 f"windows of {c.window} x {c.window} tokens{', shifted too' if c.shifted else ''}",
                 f"a proxy for {c.proxy} x {c.proxy}", f"{c.caption_tokens} tokens",
                 dtype_name(self.weights.tensors[self.plan["blocks.0.attn.proj.weight"][0]]),
                 f"{'own' if self.own else 'published'} layout"]
        return ", ".join(words)

    def read(self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """The weights under our names, views of the file where possible; CheckpointError for damaged ones."""
        logger.info("%s: %s", self.weights.path.name, self.description)
        dtype = dtype or common_dtype(self.weights, self.plan)
        return gather_tensors(self.weights, self.plan, dtype, torch.device(device), PT_DIT_FILE.expected)

    def load(self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu", ops: "Ops | None" = None,
             attend: "Attend | None" = None) -> "PTDiT":
        """The weights as a model in evaluation mode; 8-bit weights become bfloat16 unless dtype is given."""
        from ..model.attention import sdpa
        from .transformer import PTDiT
        state = self.read(dtype or widened_dtype(self.weights, self.plan), device)
        kept = state["blocks.0.attn.proj.weight"].dtype
        model = PTDiT(self.config, ops or nn, attend or sdpa, dtype=kept, device="meta")
        model.load_state_dict(by_parameter(state), strict=True, assign=True)
        return model.eval()


def by_parameter(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names of files -> under those of the model, whose tables live in modules."""
    return {parameter_name(name): tensor for name, tensor in state.items()}


def is_pt_dit(names: Iterable[str]) -> bool:
    """Whether tensors with these names hold a PT-DiT, published or ours."""
    return pt_dit_mark(names) is not None


def open_pt_dit(path: str | os.PathLike, config: PTDiTConfig | None = None) -> OpenPTDiT:
    """Map a file and recognise the PT-DiT in it, checked against all shapes, without reading the weights.

    config: what neither weights nor header say, for a file of the published layout that was trained otherwise.
    Raises CheckpointError, also for files of other models; FileNotFoundError where there is no file.
    """
    return recognise_pt_dit(open_weights(path, PT_DIT_FILE), config)


def recognise_pt_dit(weights: Weights, config: PTDiTConfig | None = None) -> OpenPTDiT:
    """The PT-DiT among mapped weights."""
    found = pt_dit_mark(weights.tensors)
    if found is None:
        raise CheckpointError(weights.path, f"{len(weights.tensors)} tensors without proxy attention among them",
                              PT_DIT_FILE.expected)
    prefix, mark = found
    shapes = {name[len(prefix):]: tuple(tensor.shape) for name, tensor in weights.tensors.items()
              if name.startswith(prefix) and name != prefix + PT_DIT_KEY}
    own = mark == OWN_MARK
    refuse_quantized(shapes, weights.path, PT_DIT_FILE.expected)
    config = config or own_pt_dit_config(weights, prefix)
    if config is None:
        if own:
            raise CheckpointError(weights.path, "a PT-DiT that does not say how large its windows are",
                                  f"{PT_DIT_KEY} in its header", "Write it with pixart.pt_dit.save_pt_dit.")
        config = published_pt_dit_config(shapes, weights.path)
    shapes.pop(PUBLISHED_POSITIONS, None)
    refuse_differences(shapes, pt_dit_shapes(config) if own else published_pt_dit_shapes(config),
                       f"a PT-DiT with {config.depth} blocks of width {config.hidden}", weights.path)
    plan = {name: tuple(prefix + part for part in ((name,) if own else published_names(name)))
            for name in pt_dit_shapes(config)}
    return OpenPTDiT(weights, config, plan, own)


def load_pt_dit(path: str | os.PathLike, dtype: torch.dtype | None = None, device: torch.device | str = "cpu",
                ops: "Ops | None" = None, attend: "Attend | None" = None,
                config: PTDiTConfig | None = None) -> "PTDiT":
    """Open a PT-DiT as a model, in evaluation mode; arguments of `open_pt_dit` and of `load` of a PixArt."""
    return open_pt_dit(path, config).load(dtype, device, ops, attend)


# -- what files say of themselves --------------------------------------------------------------------------------------

def published_pt_dit_config(shapes: Shapes, path: Path) -> PTDiTConfig:
    """From the shapes of a published file. Windows and proxies, which weights cannot show, are those of the release."""
    depth = 1 + max(int(match[1]) for name in shapes
                    if (match := re.match(r"transformer_blocks\.(\d{1,9})\.", name)))
    if depth > len(shapes):
        raise CheckpointError(path, f"a tensor of block {depth - 1} in a file of {len(shapes)} tensors",
                              "every block from 0 on", "The file is incomplete or damaged.")
    hidden, channels, patch, _ = required_shape(shapes, "pos_embed.proj.weight", 4, path)
    outputs = required_shape(shapes, "proj_out.weight", 2, path)[0]
    known: dict[str, Any] = {
        "depth": depth, "hidden": hidden, "channels": channels, "patch": patch,
        "learned_variance": outputs == 2 * channels * patch ** 2, "heads": heads_of(hidden, {}, path),
        "caption_width": required_shape(shapes, "caption_projection.linear_1.weight", 2, path)[1],
        "shifted": "transformer_blocks.0.attn3.to_q.weight" in shapes, "autoencoder": "open-sora-plan-1.2"}
    logger.info("%s: windows and proxies of 8 x 8 tokens, as in the published model; files cannot tell", path.name)
    return build_pt_dit_config(known, path)


def required_shape(shapes: Shapes, name: str, count: int, path: Path) -> tuple[int, ...]:
    shape = shapes.get(name, ())
    if len(shape) != count or 0 in shape:
        found = f"{name} has shape {shape}" if name in shapes else f"a part of a PT-DiT without {name}"
        raise CheckpointError(path, found, f"{count} dimensions there", "The file is incomplete or damaged.")
    return shape


def own_pt_dit_config(weights: Weights, prefix: str) -> PTDiTConfig | None:
    """What the header says, or in a host's file the tensor that stands for it; None where neither is there."""
    if PT_DIT_KEY in weights.metadata:
        return parse_pt_dit_config(weights.metadata[PT_DIT_KEY], weights.path, f"{PT_DIT_KEY} of its header")
    tensor = weights.tensors.get(prefix + PT_DIT_KEY)
    if tensor is None:
        return None
    if tensor.dtype != torch.uint8 or tensor.ndim != 1 or len(tensor) > LONGEST_CONFIG:
        raise CheckpointError(weights.path, f"{PT_DIT_KEY} among its tensors is not a text", "the bytes of a text")
    return parse_pt_dit_config(bytes(tensor.tolist()), weights.path, f"{PT_DIT_KEY} among its tensors")


def parse_pt_dit_config(written: str | bytes, path: Path, where: str) -> PTDiTConfig:
    """From JSON. CheckpointError that names a field that is wrong, unknown or missing, or a newer version."""
    entries = parse_json(written, path, where)
    version = entries.get("version")
    if isinstance(version, int) and version > PT_DIT_VERSION:
        raise CheckpointError(path, f"a PT-DiT of version {version}, newer than {PT_DIT_VERSION}",
                              PT_DIT_FILE.expected, "Update this extension.")
    wanted = {"version", *(field.name for field in fields(PTDiTConfig))}
    strange, lacking = sorted(entries.keys() - wanted), sorted(wanted - entries.keys())
    if strange or lacking:
        found = f"{strange[0][:40]} in {where} is not known" if strange else f"{where} does not say {lacking[0]}"
        raise CheckpointError(path, found, "the fields of PTDiTConfig")
    known = checked_entries(entries, PT_DIT_FIELDS, path, where)
    return build_pt_dit_config({name: value for name, value in known.items() if name != "version"}, path)


def build_pt_dit_config(known: Mapping[str, Any], path: Path) -> PTDiTConfig:
    try:
        return PTDiTConfig(**known)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(path, str(error), "the sizes of a PT-DiT") from error


# -- writing -----------------------------------------------------------------------------------------------------------

def pt_dit_config_text(config: PTDiTConfig) -> str:
    """The text that `parse_pt_dit_config` reads."""
    return json.dumps({"version": PT_DIT_VERSION, **asdict(config)})


def pt_dit_config_tensor(config: PTDiTConfig) -> Tensor:
    """The same as a tensor, for hosts that write tensors without this header."""
    return torch.frombuffer(bytearray(pt_dit_config_text(config).encode()), dtype=torch.uint8)


def save_pt_dit(path: str | os.PathLike, model: "PTDiT", dtype: torch.dtype | None = None) -> Path:
    """Write a safetensors file that `load_pt_dit` reads without further settings, complete or not at all.

    dtype: convert the weights; ValueError where it cannot hold them.
    """
    path = Path(path)
    tensors = {file_name(name): plain_tensor(name, tensor, dtype) for name, tensor in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, {"format": "pt", PT_DIT_KEY: pt_dit_config_text(model.config)})
    return path
