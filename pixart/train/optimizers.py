"""What moves the weights: AdamW, the same with 8-bit moments, CAME, or Muon for the matrices of the blocks."""
from collections.abc import Callable

import torch
from torch import nn

from .loop_config import LoopConfig
from .muon import Muon
from .mup import mup_parameter_groups

CAME_CONFIDENCE = 0.9999         # decay of the instability that CAME keeps beside the two moments
BLOCK_NAMES = {"blocks", "copied_block", "block"}       # of a transformer, in a ControlNet and in feedback


def optimizers(model: nn.Module, config: LoopConfig) -> list[torch.optim.Optimizer]:
    """One for all trainable parameters; for "muon" Muon for the matrices inside the blocks and AdamW for the rest.

    With config.mup_base_width the groups follow muP; their `rate_factor` is to be kept in schedules. Raises ValueError
    when nothing is trainable or muP has no rule for it, ImportError without the package that it takes.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("no parameter is trainable: every requires_grad is False")
    matrices = [p for name, p in named if config.optimizer == "muon" and is_block_matrix(name, p)]
    chosen = {id(p) for p in matrices}
    others = [{"params": [p for _, p in named if id(p) not in chosen]}]
    if config.mup_base_width:
        others = mup_parameter_groups(model, config.mup_base_width, config.learning_rate, config.weight_decay,
                                      config.epsilon)
    if config.optimizer == "came":
        return [came(others, config)]
    result = [adamw(config)(others, lr=config.learning_rate, betas=config.betas, eps=config.epsilon,
                            weight_decay=config.weight_decay)]
    if matrices:
        result.append(Muon(matrices, lr=config.learning_rate, weight_decay=config.weight_decay))
    return result


def is_block_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a matrix inside a block, of whatever network."""
    return parameter.ndim == 2 and "table" not in name and not BLOCK_NAMES.isdisjoint(name.split("."))


def adamw(config: LoopConfig) -> Callable[..., torch.optim.Optimizer]:
    """The class that keeps the moments as precisely as asked."""
    if config.optimizer != "adamw8bit":
        return torch.optim.AdamW
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ImportError("the optimizer adamw8bit needs bitsandbytes: pip install bitsandbytes; or use "
                          "optimizer = \"adamw\"") from error
    return AdamW8bit


def came(groups: list[dict], config: LoopConfig) -> torch.optim.Optimizer:
    """CAME (arXiv 2307.02047) by its authors, as PixArt-Sigma was trained: row and column sums in place of the second
    moments. `epsilon` is Adam's; CAME keeps its own."""
    try:
        from came_pytorch import CAME
    except ImportError as error:
        raise ImportError("the optimizer came needs the package of its authors: pip install came-pytorch; or use "
                          "optimizer = \"adamw\"") from error
    return CAME(groups, lr=config.learning_rate, betas=(*config.betas, CAME_CONFIDENCE),
                weight_decay=config.weight_decay)
