"""Weights and optimizer of a model that FSDP spreads over processes: gathered for the state file, and spread again."""
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .loop_config import LoopConfig

if TYPE_CHECKING:
    from accelerate import Accelerator


def is_sharded(accelerator: "Accelerator", config: LoopConfig) -> bool:
    """Whether FSDP was launched. Raises ValueError for what does not work on parts of matrices."""
    from accelerate.utils import DistributedType
    if accelerator.distributed_type != DistributedType.FSDP:
        return False
    if not accelerator.is_fsdp2:
        raise ValueError("this training shards parameters with FSDP of version 2 only; launch with --fsdp_version 2")
    if config.optimizer != "adamw" or config.mup_base_width:
        raise ValueError(f"{'muP' if config.mup_base_width else f'the optimizer {config.optimizer}'} does not work "
                         "with FSDP; use plain adamw, or processes without FSDP")
    return True


def full_tensor(parameter: Tensor) -> Tensor:
    """The full tensor, gathered from all processes where it is sharded; all must ask together."""
    parameter = parameter.detach()
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


def gather_state(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> tuple[dict, dict]:
    """Weights and optimizer state by parameter name, complete on the main process and empty on the others."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
    return get_state_dict(model, optimizers, options=StateDictOptions(full_state_dict=True, cpu_offload=True,
                                                                      ignore_frozen_params=True))


def spread_state(model: nn.Module, optimizers: list[torch.optim.Optimizer], weights: dict, moments: dict) -> None:
    """Take over what `gather_state` gave; every process has it complete."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict
    set_state_dict(model, optimizers, model_state_dict=weights, optim_state_dict=moments,
                   options=StateDictOptions(full_state_dict=True, ignore_frozen_params=True, strict=False))
