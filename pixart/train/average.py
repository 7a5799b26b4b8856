"""Exponential moving averages of the weights that are trained; frozen weights are shared, not copied."""
import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .sharding import full_tensor


def copy_sharing_frozen(model: nn.Module) -> nn.Module:
    """A copy with trainable parameters of its own; what does not require a gradient is the very same tensor."""
    frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, frozen)


def averaged_copy(model: nn.Module) -> nn.Module:
    """Where the average starts: equal to the model, in evaluation mode, without gradients."""
    return copy_sharing_frozen(model).requires_grad_(False).eval()


def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * model, trainable parameters only. decay 0 copies to the bit."""
    update_averages({decay: average}, model)


@torch.no_grad()
def update_averages(averages: Mapping[float, nn.Module], model: nn.Module) -> None:
    """`update_average` of several averages, by their decay."""
    trained = [p.requires_grad for p in model.parameters()]
    values: list[Tensor] = [full_tensor(p) for p in model.parameters() if p.requires_grad]
    for decay, average in averages.items():
        means: list[Tensor] = [mean for mean, chosen in zip(average.parameters(), trained) if chosen]
        torch._foreach_lerp_(means, values, 1 - decay)
