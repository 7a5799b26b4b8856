"""T5 in 8 bits on the host's layers: only weights are rounded, and the host moves them to the GPU and back one by one.

The network is the host's own T5, so that any part of it can stay outside of the GPU. bitsandbytes keeps all of its
layers on one device.
"""
import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...pixart.quantize import TARGETS
from ...pixart.quantize.int8 import INT8_MAX
from ...pixart.text.files import T5Files
from ...pixart.text.t5 import read_weights
from .mixin import Mixin

INT8_TARGET = TARGETS["int8_tensorwise"]


class _Int8Linear(Mixin):
    """A linear layer as the host's memory management wants it. weight int8 (N, K), weight_scale float32 (N, 1)."""

    comfy_cast_weights = True

    def __init__(self, in_features: int, out_features: int, bias: bool = False, device: Any = None,
                 dtype: torch.dtype | None = None) -> None:
        super().__init__()
        if bias:
            raise ValueError("T5 has no biases")
        self.in_features, self.out_features = in_features, out_features
        self.weight_function: list[Callable[[Tensor], Tensor]] = []
        self.bias_function: list[Callable[[Tensor], Tensor]] = []
        self.weight = frozen(torch.empty(out_features, in_features, dtype=torch.int8, device=device))
        self.weight_scale = frozen(torch.empty(out_features, 1, dtype=torch.float32, device=device))
        self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)"""
        weight = self.weight.to(x.device, non_blocking=True).to(x.dtype)
        weight = weight * self.weight_scale.to(x.device, x.dtype)
        for function in self.weight_function:
            weight = function(weight)
        return F.linear(x, weight)

    def convert_weight(self, weight: Tensor, inplace: bool = False, **_: object) -> Tensor:
        """The dequantised weight, to which the host adds patches."""
        return weight.float() * self.weight_scale.to(weight.device)

    def set_weight(self, weight: Tensor, inplace_update: bool = False, seed: int | None = None,
                   return_weight: bool = False, **_: object) -> Tensor | None:
        """Keep a patched weight, rounded with the existing scales."""
        rounded = (weight.float() / self.weight_scale.to(weight.device)).round().clamp(-INT8_MAX, INT8_MAX)
        if return_weight:
            return rounded.to(torch.int8)
        self.weight = frozen(rounded.to(torch.int8))
        return None


def frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


@functools.cache
def operations() -> type:
    """The host's layers, with Linear in 8 bits."""
    from comfy import ops

    class Int8Linear(_Int8Linear, nn.Module):
        pass

    return type("Int8Operations", (ops.manual_cast,), {"Linear": Int8Linear})


class HostT5(nn.Module):
    """The host's T5, called like that of transformers. Computes in float32, as the host's own text encoders do."""

    def __init__(self, config: Any) -> None:
        """config: the T5Config of transformers."""
        from comfy.text_encoders.t5 import T5
        super().__init__()
        sizes = {"num_layers": config.num_layers, "d_model": config.d_model, "d_kv": config.d_kv,
                 "num_heads": config.num_heads, "d_ff": config.d_ff, "vocab_size": config.vocab_size,
                 "dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True, "model_type": "t5"}
        self.t5 = T5(sizes, torch.bfloat16, "cpu", operations())

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        """Both (B, L) -> an object whose `last_hidden_state` is (B, L, C) float32."""
        hidden, _ = self.t5(input_ids, attention_mask, dtype=torch.float32)
        return SimpleNamespace(last_hidden_state=hidden)


def build_int8(files: T5Files, config: Any, progress: Callable[[int, int], None] | None) -> nn.Module:
    """What T5Encoder takes as `build`. ValueError for a T5 of settings that the host's network does not have."""
    settings = (config.relative_attention_max_distance, config.relative_attention_num_buckets,
                config.feed_forward_proj)
    if settings != (128, 32, "gated-gelu"):
        raise ValueError(f"this T5 has other settings than v1.1 ({settings}); load it in 8 bits of bitsandbytes, or in "
                         f"16 bits. File: {files.path}")
    network = HostT5(config)
    read_weights(files, weight_shapes(network.t5), functools.partial(install, network.t5), progress)
    return network.eval().requires_grad_(False)


def weight_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of all weights by name; of embeddings from their sizes, as some hosts make them without memory."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Embedding):
            shapes[f"{name}.weight"] = (layer.num_embeddings, layer.embedding_dim)
        elif isinstance(getattr(layer, "weight", None), Tensor):
            shapes[f"{name}.weight"] = tuple(layer.weight.shape)
    return shapes


def install(network: nn.Module, name: str, weight: Tensor) -> None:
    """Put one weight into its place: quantised in linear layers, bfloat16 in all others."""
    layer: Any = network.get_submodule(name.removesuffix(".weight"))
    if isinstance(layer, _Int8Linear):
        quantized = INT8_TARGET.quantize(weight).tensors
        layer.weight, layer.weight_scale = frozen(quantized["weight"]), frozen(quantized["weight_scale"])
    else:
        layer.weight = frozen(weight.to(torch.bfloat16))
