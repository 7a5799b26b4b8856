"""LoRA and DoRA adapters on a PixArtTransformer, by peft: put in, switched off for a while, read out, saved.

Our attention keeps query, key and value in one weight, so one adapter of rank r serves the three: they share lora_A and
each has rows of lora_B of its own. Written out, that is three LoRAs of rank r with equal lora_A, without any loss. The
official trainers adapt the three apart; the same freedom takes a rank of up to 3r here.
"""
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.layouts import diffusers_names
from ..checkpoint.lora import LoraPart
from ..checkpoint.lora.write import write_lora
from ..model.transformer import PixArtTransformer

ADAPTER = "default"          # peft's name for the only adapter there is


def adaptable(model: nn.Module) -> list[str]:
    """Modules the official trainers adapt: every Linear and the patch convolution, as far as diffusers has them."""
    return [name for name, module in model.named_modules()
            if isinstance(module, (nn.Linear, nn.Conv2d)) and diffusers_names(f"{name}.weight") is not None]


def choose_targets(model: nn.Module, targets: Sequence[str] | None) -> list[str]:
    """Modules whose name is a target or ends in one, all adaptable ones by default.

    Raises ValueError for a target that means none, such as diffusers' "to_q" for a part of `attn.qkv`.
    """
    names = adaptable(model)
    if targets is None:
        return names
    unknown = [target for target in targets if not any(ends_in(name, target) for name in names)]
    if unknown or not targets:
        kinds = sorted({name.split(".", 2)[2] if name.startswith("blocks.") else name for name in names})
        raise ValueError(f"no layer is called {', '.join(map(repr, unknown)) or 'nothing'}; LoRA targets are names or "
                         f"ends of names among {', '.join(kinds)}")
    return [name for name in names if any(ends_in(name, target) for target in targets)]


def ends_in(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def add_lora(model: PixArtTransformer, rank: int, alpha: float | None, targets: Sequence[str] | None = None,
             dora: bool = False, seed: int = 0) -> nn.Module:
    """Put trainable adapters into a model, in place, and freeze everything else; returns the model.

    It computes the same as before until trained: lora_B starts at zero. rank r >= 1; alpha > 0, or None for r: the
    change is alpha / r * lora_B @ lora_A. targets: names or ends of names in the reference layout, such as "attn.qkv",
    None for all that the official trainers adapt. dora: also learn the length of every row. seed: of lora_A. Adapters
    are float32 whatever the model is. Raises ValueError for impossible arguments or a model that has adapters.
    """
    from peft import LoraConfig, inject_adapter_in_model
    if rank < 1 or (alpha is not None and not alpha > 0):
        raise ValueError(f"LoRA rank is {rank}, alpha {alpha}; rank must be at least 1, alpha above 0")
    if any(True for _ in adapters(model)):
        raise ValueError("this model has LoRA adapters already; load the base model anew")
    strength: Any = rank if alpha is None else alpha         # peft takes fractions too
    settings = LoraConfig(r=rank, lora_alpha=strength, use_dora=dora,
                          target_modules=choose_targets(model, targets))
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):     # peft draws starting values that are drawn anew below
        inject_adapter_in_model(settings, model, ADAPTER)
    generator = torch.Generator().manual_seed(seed)
    for _, layer in adapters(model):
        down = layer.lora_A[ADAPTER].weight
        start = torch.empty(down.shape)
        nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
        with torch.no_grad():
            down.copy_(start)
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    return model


def adapters(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers peft has put in, with their names."""
    from peft.tuners.lora import LoraLayer
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))


def is_adapter(parameter: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return ".lora_" in parameter


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, the model is its frozen base; wrappers around it (accelerate) may be passed too."""
    layers = [layer for _, layer in adapters(model)]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield model
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter in model.parameters():        # peft makes all adapters trainable, also those of a frozen copy
            parameter.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' parameters alone, for a checkpoint of the training."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if is_adapter(name)}


@torch.no_grad()
def load_lora_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Take over what `lora_state` gave; raises ValueError if names or shapes differ."""
    own = {name: parameter for name, parameter in model.named_parameters() if is_adapter(name)}
    wrong = [name for name in own.keys() | state.keys()
             if name not in own or name not in state or own[name].shape != state[name].shape]
    if wrong:
        raise ValueError(f"the saved adapters do not fit: {len(wrong)} of {len(own)} tensors differ, such as "
                         f"{min(wrong)}. Go on with the rank, targets and model the training began with.")
    for name, parameter in own.items():
        parameter.copy_(state[name])


def lora_parts(model: nn.Module) -> tuple[LoraPart, ...]:
    """What the adapters change, for `merge_lora` and `write_lora`; the tensors are those in training."""
    parts = []
    for name, layer in adapters(model):
        magnitude = layer.lora_magnitude_vector[ADAPTER].weight if ADAPTER in layer.lora_magnitude_vector else None
        parts.append(LoraPart(name, 0, 1, layer.lora_A[ADAPTER].weight.detach(),
                              layer.lora_B[ADAPTER].weight.detach().flatten(1), float(layer.scaling[ADAPTER]),
                              None if magnitude is None else magnitude.detach().flatten()))
    return tuple(parts)


def save_lora(path: str | os.PathLike, model: nn.Module, dtype: torch.dtype | None = None,
              metadata: Mapping[str, str] | None = None) -> Path:
    """Save a model's adapters: one file in diffusers layout for a name with .safetensors, else a folder as peft does.

    dtype: of the tensors, float32 by default. metadata: further header entries. Raises ValueError without adapters.
    """
    layout = "diffusers" if Path(path).suffix == ".safetensors" else "peft"
    return write_lora(path, lora_parts(model), layout, dtype, metadata)
