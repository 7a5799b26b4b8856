"""Quantised layers of a file as the host's layers of mixed precision take them."""
import functools
import inspect
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ...pixart.checkpoint import CheckpointError, OpenCheckpoint
from .branches import BRANCHES_KEY


def host_formats() -> tuple[str, ...]:
    """The formats that this host computes with; none before it had layers that read them."""
    try:
        from comfy.ops import mixed_precision_ops, pick_operations  # noqa: F401
        from comfy.quant_ops import QUANT_ALGOS, get_layout_class
    except ImportError:
        return ()
    if "model_config" not in inspect.signature(pick_operations).parameters:
        return ()
    return tuple(name for name, told in QUANT_ALGOS.items() if get_layout_class(told["comfy_tensor_layout"]))


def quantized_entries(opened: OpenCheckpoint, weight_dtype: str) -> dict[str, Tensor]:
    """All tensors of quantised layers, by their names in the host's layers; none where they are to be dequantised.

    weight_dtype: "auto" leaves them quantised where any host computes with their format, any other dequantises. Raises
    CheckpointError for a format that this host does not know.
    """
    if not opened.quantized_as or weight_dtype != "auto" or not opened.runs_in_host:
        return {}
    known = host_formats()
    strange = [name for name in opened.quantized_as if name not in known]
    if strange:
        raise CheckpointError(opened.weights.path, f"layers quantised as {strange[0]}, which this ComfyUI cannot run",
                              f"one of {', '.join(known)}" if known else "weights that are not quantised",
                              "Choose weight_dtype bf16 to dequantise them, or update ComfyUI and comfy-kitchen.")
    return {f"{layer}.{own}": tensor for layer, quantized in opened.quantized().items()
            for own, tensor in quantized.entries().items()}


def quantized_weights(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and values of those weights that the host keeps quantised; a value knows its dequantised shape."""
    try:
        from comfy.quant_ops import QuantizedTensor
    except ImportError:
        return
    for name, weight in network.named_parameters():
        if isinstance(weight, QuantizedTensor):
            yield name, weight


@functools.cache
def quantized_patcher(base: type) -> type:
    """The class of quantised MODELs, one of the host's: it refuses what the host cannot do with their weights.

    The host looks up every tensor of a file of theirs as an attribute of a layer, and finds no scales.
    """
    class QuantizedModelPatcher(base):
        def clone(self, *args: Any, **kwargs: Any) -> Any:
            """Where weights are not to be dynamic (hooks, torch.compile) the host's clone is a plain ModelPatcher."""
            other = super().clone(*args, **kwargs)
            plain: Any = type(other)
            if plain is not type(self):
                other.__class__ = quantized_patcher(plain)
            return other

        def get_key_patches(self, *args: Any, **kwargs: Any) -> dict:
            """Called for what is merged into another MODEL, and before hooks change weights."""
            raise ValueError("the weights of this MODEL are quantised: they can neither be merged into another MODEL "
                             "nor be changed by hooks. Load it with weight_dtype bf16, which dequantises them.")

        def add_patches(self, patches: Any, strength_patch: float = 1.0, strength_model: float = 1.0) -> list:
            """The host's own; of its nodes, only those that merge change how strongly the MODEL itself counts."""
            if strength_model != 1 and any(key.startswith(BRANCHES_KEY) for key in self.injections):
                raise ValueError("this MODEL has a LoRA beside quantised weights, which would keep its strength in a "
                                 "merge. Load the model with weight_dtype bf16, or merge first and add the LoRA then.")
            return super().add_patches(patches, strength_patch, strength_model)
    return QuantizedModelPatcher


def is_quantized(model: Any) -> bool:
    """Whether a MODEL has quantised layers."""
    return next(quantized_weights(model.model.diffusion_model), None) is not None
