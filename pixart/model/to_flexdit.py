"""From a PixArt model to the FlexDiT that training starts from."""
from collections.abc import Mapping
from typing import cast

from torch import Tensor

from .block import PixArtBlock
from .flexdit import FlexDiT
from .flexdit_config import Density, FlexDiTConfig, Segments
from .transformer import PixArtTransformer


def convert_state_dict(state_dict: Mapping[str, Tensor], config: FlexDiTConfig) -> dict[str, Tensor]:
    """A PixArt's tensors (reference names) as those of a FlexDiT in these segments; new where they differ.

    A PixArt has queries, keys and values in one matrix. W1 is zero and W2 the identity: before any training nothing of
    the sparse tokens is copied back.
    """
    result: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        head, _, tail = name.partition(".attn.qkv.")
        role = config.segments.roles[int(head.removeprefix("blocks."))] if tail else ""
        if role == "pooling":
            result[f"{head}.attn.v.{tail}"] = tensor[2 * config.hidden:].clone()
        elif role in ("merge", "recover"):
            result[f"{head}.attn.q.{tail}"] = tensor[:config.hidden].clone()
            result[f"{head}.attn.kv.{tail}"] = tensor[config.hidden:].clone()
        else:
            result[name] = tensor
    pooled = [f"blocks.{i}.attn.{norm}_norm." for i in range(config.segments.pooling) for norm in "qk"]
    result = {name: tensor for name, tensor in result.items() if not name.startswith(tuple(pooled))}
    return result | mixing_layers(result, config)


def mixing_layers(state_dict: Mapping[str, Tensor], config: FlexDiTConfig) -> dict[str, Tensor]:
    """W1 = 0 and W2 = I of all recover blocks, in the dtype and on the device of the block's other weights."""
    made: dict[str, Tensor] = {}
    for index, role in enumerate(config.segments.roles):
        if role == "recover":
            like = state_dict[f"blocks.{index}.attn.q.weight"]
            identity = like.new_zeros(like.shape).fill_diagonal_(1)
            for layer, weight in (("from_sparse", like.new_zeros(like.shape)), ("from_dense", identity)):
                made[f"blocks.{index}.{layer}.weight"] = weight
                made[f"blocks.{index}.{layer}.bias"] = like.new_zeros(len(like))
    return made


def to_flexdit(model: PixArtTransformer, segments: Segments | None = None, density: Density | None = None) -> FlexDiT:
    """A PixArt model as the FlexDiT that training starts from; it shares the tensors that are the same.

    segments: by default those for its depth. Raises ValueError for a model that is one already, for segments of
    another depth, and for key/value compression.
    """
    if isinstance(model, FlexDiT):
        raise ValueError("this model is a FlexDiT already; convert the PixArt model it was made from")
    config = FlexDiTConfig.of(model.config, segments, density)
    attend = cast(PixArtBlock, model.blocks[0]).cross_attn.attend
    made = FlexDiT(config, attend=attend, dtype=model.dtype, device="meta")
    made.load_state_dict(convert_state_dict(model.state_dict(), config), strict=True, assign=True)
    return made.train(model.training)
