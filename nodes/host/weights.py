"""Weights into networks of the host's layers.

Hosts with dynamic VRAM make some layers without memory: Linear has no weight at all, Embedding one on the meta device,
and both take whatever tensor comes when they are filled. Other hosts, and other layers, copy into what is there.
"""
import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ...pixart.checkpoint.layouts import NULL_CAPTION
from ...pixart.checkpoint.lora.changes import TABLE

# Attributes that newer hosts attach to layers, and to the network that a ModelPatcher holds.
HANDLES = ("_v", "_v_block", "_pin_state", "_pins", "dynamic_pins", "dynamic_vbars", "dynamic_patchers")


def copied(network: nn.Module, memo: dict[int, Any] | None = None) -> Any:
    """A deep copy of a network, without the handles by which newer hosts manage its memory: both would free them.

    memo: of copy.deepcopy, by id; what stands for tensors that are copied otherwise.
    """
    memo = {} if memo is None else memo
    for module in network.modules():
        handles = [value for name, value in vars(module).items() if name in HANDLES]
        memo.update((id(value), None) for value in handles if not isinstance(value, (int, float, str)))
    made = copy.deepcopy(network, memo)
    for module in made.modules():
        for name in HANDLES:
            vars(module).pop(name, None)
    return made


def is_dynamic(patcher: Any) -> bool:
    """Whether the host brings the weights of this ModelPatcher to the GPU layer by layer, as it needs them."""
    return hasattr(patcher, "is_dynamic") and patcher.is_dynamic()


def fill(network: nn.Module, state_dict: Mapping[str, Tensor], dynamic: bool = False) -> None:
    """Load weights of the right shapes, strictly.

    dynamic: take the tensors over as they are, views of a file perhaps; the host casts them on their way to the GPU.
    Otherwise they are copied, in the data type that the network was built with. Raises RuntimeError for missing and
    unknown tensors.
    """
    if dynamic:
        state_dict = {name: value.float() if in_float32(name) else value for name, value in state_dict.items()}
    network.load_state_dict(state_dict, strict=True, assign=dynamic)
    unfilled = [name for name, tensor in network.state_dict().items() if tensor.is_meta]    # the host ignores these
    if unfilled:
        raise RuntimeError(f"{len(unfilled)} tensors are missing, the first is {unfilled[0]}")
    if not dynamic:
        as_built(network)


def in_float32(name: str) -> bool:
    """The host loads small tensors as they are: these are small, and must be exact."""
    return name.removesuffix(".weight").endswith(TABLE) or name == NULL_CAPTION


def as_built(network: nn.Module) -> None:
    """Cast what the host's layers took over in the data type of the file."""
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            built = getattr(module, f"{name}_comfy_model_dtype", None)
            if built not in (None, parameter.dtype):
                setattr(module, name, nn.Parameter(parameter.to(built), requires_grad=False))
