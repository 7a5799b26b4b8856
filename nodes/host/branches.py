"""LoRAs beside quantised weights: what they add is computed from the layer's input, the weight stays as it is.

Patches would be added to the dequantised weight and rounded when it is quantised again, which loses most of a small
change. These are attached to layers only while the host has the model loaded (its injections), so clones without them
are not touched. The host's own bypass of LoRAs has one adapter a layer and one LoRA a model.
"""
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...pixart.checkpoint.lora import Change, LoraPart

BRANCHES_KEY = "pixart_branches"        # of injections of a MODEL, and of the branches on a layer
WITHOUT = "without_branches"            # of a forward with branches: the one it was before


@dataclass
class Branch:
    """One change of some output rows of one layer, at a strength."""

    part: Change
    strength: float
    kept: dict[tuple[torch.device, torch.dtype], tuple[Tensor, ...]] = field(default_factory=dict)

    def add(self, layer: nn.Module, x: Tensor, out: Tensor) -> None:
        """In place: out (..., N) plus what the change makes of x (..., K)."""
        start, count = self.part.rows((out.shape[-1], x.shape[-1]))
        matrices = self.kept.get((x.device, x.dtype))
        if matrices is None:
            matrices = self.kept[x.device, x.dtype] = tuple(
                each.to(x.device, x.dtype) for each in self.matrices(layer, start, count))
        added = x
        for matrix in matrices:
            added = F.linear(added, matrix)
        out.narrow(-1, start, count).add_(added)

    def matrices(self, layer: nn.Module, start: int, count: int) -> tuple[Tensor, ...]:
        """What the input is multiplied by, one after the other; strength and scale included."""
        part = self.part
        if isinstance(part, LoraPart) and part.magnitude is None and part.mid is None:
            return part.down.flatten(1).float(), self.strength * part.scale * part.up.float()
        weight: Any = layer.weight
        rows = weight.detach().dequantize().float()[start:start + count]
        return (self.strength * part.on(rows.device).change(rows),)


def injection_class() -> type:
    from comfy.patcher_extension import PatcherInjection

    class Branches(PatcherInjection):
        """All branches of one MODEL, by layer."""

        def __init__(self, layers: dict[str, tuple[Branch, ...]]) -> None:
            super().__init__(self.hang_on, self.take_off)
            self.layers = layers

        def hang_on(self, patcher: Any) -> None:
            for name, branches in self.layers.items():
                hang_on_layer(patcher.model.diffusion_model.get_submodule(name), branches)

        def take_off(self, patcher: Any) -> None:
            for name, branches in self.layers.items():
                take_off_layer(patcher.model.diffusion_model.get_submodule(name))
                for branch in branches:
                    branch.kept.clear()
    return Branches


def hang_on_layer(layer: nn.Module, branches: tuple[Branch, ...]) -> None:
    vars(layer)[BRANCHES_KEY] = branches
    if not hasattr(layer.forward, WITHOUT):
        layer.forward = with_branches(layer, layer.forward)


def take_off_layer(layer: nn.Module) -> None:
    """From then on the layer gives its own output alone.

    Where another pack has put its own forward around ours (the host's bypass of LoRAs), the host takes ours off first
    and the other one then puts ours back, so ours stays and adds nothing.
    """
    vars(layer).pop(BRANCHES_KEY, None)
    bare = getattr(vars(layer).get("forward"), WITHOUT, None)
    if getattr(bare, "__func__", None) is type(layer).forward:
        del layer.forward
    elif bare is not None:
        layer.forward = bare


def with_branches(layer: nn.Module, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A forward of a layer, plus what the branches attached to it add."""
    def both(x: Tensor, *arguments: Any, **named: Any) -> Tensor:
        out = forward(x, *arguments, **named)
        for branch in getattr(layer, BRANCHES_KEY, ()):
            branch.add(layer, x, out)
        return out
    setattr(both, WITHOUT, forward)
    return both


def has_branches(network: nn.Module) -> bool:
    """Whether any are attached to its layers now."""
    return any(BRANCHES_KEY in vars(layer) for layer in network.modules())


def add_branches(model: Any, parts: Sequence[Change], strength: float) -> None:
    """In place: changes of quantised layers on a MODEL that was just cloned, beside those that it has."""
    layers: dict[str, tuple[Branch, ...]] = {}
    for key in [key for key in model.injections if key.startswith(BRANCHES_KEY)]:
        (old,) = model.get_injections(key)
        layers.update(old.layers)
        model.remove_injections(key)
    for part in parts:
        layers[part.module] = (*layers.get(part.module, ()), Branch(part.on("cpu", copy=True), strength))
    # The host compares MODELs by these names alone: another set of branches needs another one.
    model.set_injections(f"{BRANCHES_KEY}-{uuid.uuid4()}", [injection_class()(layers)])
