"""Scale-aware adaptive rounding: whether each weight goes up or down is learned, one block at a time.

All linears of a block are rounded together so that the block keeps its output on calibration data. As in AdaRound
(Nagel et al. 2020), with the variable divided by the distance of the two levels, which differs from weight to weight
in a floating-point type. Source: FP4DiT (arXiv 2503.15465), section 4, and its published code.
"""
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..model.block import PixArtBlock
from .calibrate import AT_ONCE, Inputs
from .format import FormatOptions, Quantized
from .fp4 import FP4, grouped, rest_of

LOW, HIGH = -0.1, 1.1           # what the sigmoid is stretched to before it is clamped to 0..1
WARM_UP_SHARE = 0.2             # share of the iterations without the regulariser
FIRST_POWER, LAST_POWER = 20.0, 2.0


@dataclass(frozen=True)
class Adaptation:
    """How long and how fast rounding is learned; defaults as published."""

    iterations: int = 2500
    learning_rate: float = 1e-4
    batch: int = AT_ONCE
    regulariser: float = 0.01       # weight of the term that pushes each weight to one of its levels
    seed: int = 0

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.batch < 1 or not self.learning_rate > 0:
            raise ValueError(f"{self.iterations} iterations of {self.batch} rows at {self.learning_rate:g}; all three "
                             "must be above 0")

    def power(self, iteration: int) -> float:
        """Exponent of the regulariser; it falls, so that at first only nearly decided weights move. 0 in warm-up."""
        start = WARM_UP_SHARE * self.iterations
        if iteration < start:
            return 0.0
        return LAST_POWER + (FIRST_POWER - LAST_POWER) * (1 - (iteration - start) / (self.iterations - start))


class SoftWeight(nn.Module):
    """A weight between the level below and the level above; the same as the weight itself at the start.

    `variable` is learned, in the units of the weight. All tensors are of groups, (N, K / g, g).
    """

    floor: Tensor
    codes: Tensor
    step: Tensor
    branch: Tensor
    sign: Tensor

    def __init__(self, weight: Tensor, options: FormatOptions) -> None:
        super().__init__()
        form = FP4()
        self.tensors, self.options = form.branch(weight, options), options
        self.groups = groups = grouped(rest_of(weight, self.tensors), options)
        codes, step = groups.kind.below(groups.magnitudes)
        share = groups.magnitudes / step - (groups.kind.value(codes) / step).round()
        self.register_buffer("codes", codes)
        self.register_buffer("step", step * groups.unit)
        self.register_buffer("floor", groups.kind.value(codes) * groups.unit)
        self.register_buffer("sign", torch.where(groups.negative, -1.0, 1.0))
        self.register_buffer("branch", weight - rest_of(weight, self.tensors))
        self.variable = nn.Parameter(self.step * torch.logit((share - LOW) / (HIGH - LOW)))

    def share(self) -> Tensor:
        """How far each weight is on the way to the level above, 0..1."""
        return (torch.sigmoid(self.variable / self.step) * (HIGH - LOW) + LOW).clamp(0, 1)

    def forward(self) -> Tensor:
        """The weight (N, K)."""
        return self.joined(self.floor + self.share() * self.step)

    def joined(self, magnitudes: Tensor) -> Tensor:
        """magnitudes of groups -> (N, K), none above its group's largest, the low-rank branch added."""
        return (self.sign * torch.minimum(magnitudes, self.groups.scale.float()[..., None])).flatten(1) + self.branch

    def hard(self) -> Quantized:
        """Every weight at the nearer of its two levels; in the middle, at the upper one."""
        up = (self.variable.detach() >= 0).long()
        codes = (self.codes + up).clamp(max=self.groups.kind.levels - 1)
        return Quantized(FP4(), {**self.groups.packed(codes), **self.tensors}, self.options)


def adapt_block(block: PixArtBlock, options: Mapping[str, FormatOptions], inputs: Inputs, target: Tensor,
                adaptation: Adaptation, told: Callable[[int, int], None] | None = None) -> dict[str, Quantized]:
    """The linears of a float32 block that `options` names, quantised so that `inputs` still give `target` (R, N, D).

    The block is left as it was. told(done, total), in iterations, may raise to stop.
    """
    device = block.attn.proj.weight.device
    soft = {layer: SoftWeight(block.get_parameter(f"{layer}.weight").detach(), own).to(device)
            for layer, own in options.items()}
    generator = torch.Generator().manual_seed(adaptation.seed)
    optimizer = torch.optim.Adam([each.variable for each in soft.values()], adaptation.learning_rate)
    for iteration in range(adaptation.iterations):
        rows = torch.randint(len(inputs), (adaptation.batch,), generator=generator)
        loss = loss_of(block, soft, inputs.rows(rows), target[rows].to(device), adaptation, iteration)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if told:
            told(iteration + 1, adaptation.iterations)
    if not math.isfinite(loss.item()):
        raise FloatingPointError("the loss of adaptive rounding is not finite; use a smaller learning rate")
    return {layer: each.hard() for layer, each in soft.items()}


def loss_of(block: PixArtBlock, soft: Mapping[str, SoftWeight], inputs: Inputs, target: Tensor,
            adaptation: Adaptation, iteration: int) -> Tensor:
    """Squared error summed over tokens, averaged over rows and channels, plus the regulariser of undecided weights."""
    weights = {f"{layer}.weight": each() for layer, each in soft.items()}
    made = inputs.into(lambda *given: functional_call(block, weights, given), target.device)
    loss = (made - target).square().sum(1).mean()
    if (power := adaptation.power(iteration)):
        undecided = [(1 - (2 * each.share() - 1).abs().pow(power)).sum() for each in soft.values()]
        loss = loss + adaptation.regulariser * torch.stack(undecided).sum()
    return loss
