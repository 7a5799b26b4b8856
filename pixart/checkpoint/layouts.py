"""Names and shapes of PixArt's tensors: the reference layout, the diffusers layout, and the way between them.

Nothing is transposed: diffusers keeps query, key and value in separate tensors where the reference stacks their rows.
"""
import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ..config import PixArtConfig

NULL_CAPTION = "y_embedder.y_embedding"
DIFFUSERS_NULL_CAPTION = "caption_projection.y_embedding"       # only in community conversions
POSITION_TABLE = "pos_embed"                                    # a computed table: not loaded, but gives the base size

OUTER = {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "adaln_single.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "adaln_single.emb.timestep_embedder.linear_2",
    "csize_embedder.mlp.0": "adaln_single.emb.resolution_embedder.linear_1",
    "csize_embedder.mlp.2": "adaln_single.emb.resolution_embedder.linear_2",
    "ar_embedder.mlp.0": "adaln_single.emb.aspect_ratio_embedder.linear_1",
    "ar_embedder.mlp.2": "adaln_single.emb.aspect_ratio_embedder.linear_2",
    "t_block.1": "adaln_single.linear",
    "y_embedder.y_proj.fc1": "caption_projection.linear_1",
    "y_embedder.y_proj.fc2": "caption_projection.linear_2",
    "final_layer.linear": "proj_out",
}
INNER = {
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.proj": ("attn1.to_out.0",),
    "attn.q_norm": ("attn1.q_norm",),
    "attn.k_norm": ("attn1.k_norm",),
    "cross_attn.q_linear": ("attn2.to_q",),
    "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
    "cross_attn.proj": ("attn2.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
}
OUTER_BACK = {theirs: ours for ours, theirs in OUTER.items()}
INNER_BACK = {theirs: (ours, part, len(parts)) for ours, parts in INNER.items() for part, theirs in enumerate(parts)}
BLOCK_NAME = re.compile(r"(transformer_blocks|blocks)\.(\d{1,9})\.(.+)")


def reference_module(diffusers_module: str) -> tuple[str, int, int] | None:
    """Where a diffusers module lies in the reference layout: (module, part, parts), None for an unknown name.

    "transformer_blocks.3.attn1.to_k" is ("blocks.3.attn.qkv", 1, 3): the second third of its rows. LoRA keys
    are mapped by it too.
    """
    if diffusers_module in OUTER_BACK:
        return OUTER_BACK[diffusers_module], 0, 1
    match = BLOCK_NAME.fullmatch(diffusers_module)
    if match is None or match[1] != "transformer_blocks" or match[3] not in INNER_BACK:
        return None
    ours, part, parts = INNER_BACK[match[3]]
    return f"blocks.{match[2]}.{ours}", part, parts


def reference_name(diffusers_name: str) -> tuple[str, int, int] | None:
    """The same for a tensor name with its .weight or .bias; also tables and the community's null caption."""
    if diffusers_name == DIFFUSERS_NULL_CAPTION:
        return NULL_CAPTION, 0, 1
    if diffusers_name == "scale_shift_table":
        return "final_layer.scale_shift_table", 0, 1
    match = BLOCK_NAME.fullmatch(diffusers_name)
    if match and match[1] == "transformer_blocks" and match[3] == "scale_shift_table":
        return f"blocks.{match[2]}.scale_shift_table", 0, 1
    module, _, kind = diffusers_name.rpartition(".")
    place = reference_module(module) if kind in ("weight", "bias") else None
    return place and (f"{place[0]}.{kind}", place[1], place[2])


def diffusers_names(name: str) -> tuple[str, ...] | None:
    """The diffusers tensors whose rows make up a reference tensor, in order; None where diffusers has none."""
    if name == NULL_CAPTION:
        return (DIFFUSERS_NULL_CAPTION,)
    if name == "final_layer.scale_shift_table":
        return ("scale_shift_table",)
    match = BLOCK_NAME.fullmatch(name)
    if match and match[3] == "scale_shift_table":
        return (f"transformer_blocks.{match[2]}.scale_shift_table",)
    module, _, kind = name.rpartition(".")
    if match:
        inner = match[3].rpartition(".")[0]
        return tuple(f"transformer_blocks.{match[2]}.{part}.{kind}" for part in INNER.get(inner, ())) or None
    return (f"{OUTER[module]}.{kind}",) if module in OUTER else None


def plan_reference(names: Mapping[str, object]) -> dict[str, tuple[str, ...]]:
    """Reference name -> diffusers names that make it up. Unknown names map to themselves."""
    plan: dict[str, tuple[str, ...]] = {}
    for name in names:
        place = reference_name(name)
        if place is None:
            plan[name] = (name,)
        else:
            plan[place[0]] = diffusers_names(place[0]) or (name,)
    return {name: parts for name, parts in plan.items() if name != POSITION_TABLE}


def to_reference(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Diffusers names to reference names; stacked tensors are new, the others the same objects.

    Raises KeyError with the first unknown or missing name.
    """
    unknown = [name for name in state_dict if reference_name(name) is None and name != POSITION_TABLE]
    if unknown:
        raise KeyError(f"{len(unknown)} names are not of a diffusers PixArt, the first is {unknown[0]}")
    return {name: state_dict[parts[0]] if len(parts) == 1 else torch.cat([state_dict[part] for part in parts])
            for name, parts in plan_reference(state_dict).items()}


def to_diffusers(state_dict: Mapping[str, Tensor], null_caption: bool = False) -> dict[str, Tensor]:
    """Reference names (with or without `.weight` behind tables) to diffusers names; all results are views.

    The position table is left out, and the null caption too unless asked for, because the diffusers class has no
    place for it. Raises KeyError for tensors diffusers cannot hold (key/value compression).
    """
    result: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        name = file_name(name)
        if name == POSITION_TABLE or (name == NULL_CAPTION and not null_caption):
            continue
        parts = diffusers_names(name)
        if parts is None:
            raise KeyError(f"{name} has no place in the diffusers layout")
        result.update(zip(parts, tensor.chunk(len(parts)), strict=True))
    return result


def file_name(parameter: str) -> str:
    """Name in files of a parameter of PixArtTransformer: its tables live in a sub-module, files know only the table."""
    return parameter.removesuffix(".weight") if parameter.endswith("scale_shift_table.weight") else parameter


def parameter_name(name: str) -> str:
    """The other way: name of the parameter that a tensor of a file belongs to."""
    return f"{name}.weight" if name.endswith("scale_shift_table") else name


@lru_cache(maxsize=8)
def expected_shapes(config: PixArtConfig) -> Mapping[str, tuple[int, ...]]:
    """Every tensor of a model with this configuration, in reference names, as the model itself has it."""
    from ..model.flexdit import transformer_class
    return file_shapes(transformer_class(config)(config, device="meta"))


def file_shapes(model: nn.Module) -> Mapping[str, tuple[int, ...]]:
    """Shapes of a model's tensors under the names that files have; read-only."""
    return MappingProxyType({file_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()})
