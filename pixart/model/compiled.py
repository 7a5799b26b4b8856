"""torch.compile for the blocks of networks, where the machine can compile."""
import logging
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from .block import PixArtBlock
from .flexdit import ExchangeBlock

logger = logging.getLogger(__name__)


def blocks_of(networks: Iterable[nn.Module]) -> Iterator[PixArtBlock | ExchangeBlock]:
    for network in networks:
        yield from (module for module in network.modules() if isinstance(module, PixArtBlock | ExchangeBlock))


def compile_blocks(networks: Iterable[nn.Module], device: torch.device, backend: str = "inductor") -> bool:
    """Compile every block, in place, when it is first run; False, with a warning in the log, if that is not possible.

    Block by block, because all have the same graph: it is compiled once, and the rest of the network needs no compiler.
    Policies are asked outside of blocks, so they work unchanged with compiled ones; one that intercepts branches makes
    one graph for each of the three.
    """
    reason = why_not(device, backend)
    if reason:
        logger.warning("the blocks are not compiled, which takes longer: %s", reason)
        return False
    for block in blocks_of(networks):
        block.compile(backend=backend)
    return True


def forget_compiled(networks: Iterable[nn.Module]) -> None:
    """Make every block run uncompiled again."""
    for block in blocks_of(networks):
        block._compiled_call_impl = None


def why_not(device: torch.device, backend: str) -> str:
    """Empty if torch.compile works on the device, else the first line of its error."""
    def double(x: Tensor) -> Tensor:
        return 2 * x + 1
    try:
        torch.compile(double, backend=backend)(torch.ones(4, device=device))
    except Exception as error:      # the compiler's own kinds of errors depend on the backend and on torch's version
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return ""
