"""Activations in few bits, rounded on the fly, to see what quantising the inputs of layers too would cost.

Every token is scaled by its own largest magnitude, queries, keys and values by that of token and head. Numbers stay in
the dtype of the model, so this shows the loss and saves nothing. Source: FP4DiT (arXiv 2503.15465) and its published
code: E2M3 in 6 bits, E3M4 in 8.
"""
from torch import Tensor, nn

from ..model.attention import Attend, Options
from ..model.transformer import PixArtTransformer
from .minifloat import MiniFloat

INPUTS = {6: MiniFloat(2, 3), 8: MiniFloat(3, 4)}


def round_inputs(model: PixArtTransformer, bits: int) -> PixArtTransformer:
    """In place: round what the linears of all blocks read, and what attention reads. bits: 6 or 8; else ValueError.

    For sampling, not for training: rounding has no gradient.
    """
    if bits not in INPUTS:
        raise ValueError(f"inputs can be rounded to {' or '.join(map(str, INPUTS))} bits, not {bits}")
    kind = INPUTS[bits]

    def hook(layer: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (rounded(given[0], kind), *given[1:])
    for module in model.blocks.modules():
        if hasattr(module, "attend"):
            module.attend = rounding(module.attend, kind)           # type: ignore[assignment, arg-type]
        if hasattr(module, "in_features"):
            module.register_forward_pre_hook(hook)
    return model


def rounded(x: Tensor, kind: MiniFloat) -> Tensor:
    """(..., C), every row scaled by its largest magnitude, in the dtype of x."""
    values = x.float()
    scale = values.abs().amax(-1, keepdim=True).clamp(min=1e-30) / kind.largest
    levels = kind.rounded((values.abs() / scale).clamp(max=kind.largest))
    return (levels.copysign(values) * scale).to(x.dtype)


def rounding(attend: Attend, kind: MiniFloat) -> Attend:
    """The same attention of rounded queries, keys and values."""
    def rounded_attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None, options: Options) -> Tensor:
        q, k, v = (rounded(t.unflatten(-1, (heads, -1)), kind).flatten(-2) for t in (q, k, v))
        return attend(q, k, v, heads, mask, options)
    return rounded_attend
