"""LCM-LoRA: consistency distillation in which one network is all three, teacher, student and target.

The teacher is the frozen base with its adapters switched off; the target comes from the adapted network itself, without
gradient, where full distillation keeps a moving average. So training needs one copy of the weights.
"""
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .data import Batch, TrainingData
from .lora import without_adapters
from .objectives import Consistency


@dataclass(frozen=True)
class ConsistencyLora:
    """The loss of `Consistency` for a network with adapters (see `add_lora`); its moving average is not used.

    guidance, huber_c and guidance_max as there. Follows the official LCM-LoRA trainer, whose one difference from full
    distillation, beside the adapters, is the missing moving average.
    """

    data: TrainingData
    guidance: float = 4.5
    huber_c: float = 0.001
    guidance_max: float | None = None

    def __call__(self, model: nn.Module, average: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        def teacher(*given: Tensor, **conditions: Tensor) -> Tensor:
            with without_adapters(model):
                return model(*given, **conditions)

        same = Consistency(self.data, teacher, self.guidance, self.huber_c, self.guidance_max)
        return same(model, model, batch, generator)
