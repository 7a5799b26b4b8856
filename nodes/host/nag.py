"""A negative prompt in cross-attention, on a MODEL of the host."""
from typing import Any

from torch import Tensor

from ...pixart.model.nag import NAG
from .conditioning import compact_text
from .policies import with_policies
from .transformer import network_in


def with_nag(model: Any, negative: list, scale: float, tau: float, alpha: float, start: float, end: float) -> Any:
    """A clone of a MODEL that steers away from a negative CONDITIONING; the numbers as for NAG.

    Raises ValueError for a MODEL that is no PixArt of this pack, for a CONDITIONING of another text encoder, and for
    several prompts combined.
    """
    network, context = network_in(model.model), avoided_text(negative)
    if network is not None:
        NAG(network.config, context, scale, tau, alpha, start, end)     # so that errors come before any work
    return with_policies(model, lambda sampling: [NAG(sampling.config, context, scale, tau, alpha, start, end)])


def avoided_text(negative: list) -> Tensor:
    """(1, L, C), what the host would show the network, without padding."""
    if len(negative) != 1 or len(negative[0][0]) != 1:
        raise ValueError(f"negative holds {sum(len(entry[0]) for entry in negative)} prompts; NAG avoids one. Write "
                         "everything that is to be avoided into one text.")
    context, told = negative[0]
    return compact_text(context, told.get("attention_mask"))[0]
