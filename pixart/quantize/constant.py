"""Small tensors that unpacking needs every time a layer runs: copied to a device once."""
from collections.abc import Callable

import torch
from torch import Tensor


class Constant:
    """What `make` gives, on the CPU, and its copies on the devices it was asked for."""

    def __init__(self, make: Callable[[], Tensor]) -> None:
        self.make = make
        self.copies: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        """The tensor on this device. Nobody may write into it."""
        if device in self.copies:
            return self.copies[device]
        with torch.inference_mode(False):       # a kept tensor must stay usable in training
            copy = self.make().to(device)
        if type(copy) is Tensor:                # not one that only stands in for data, while something is traced
            self.copies[device] = copy
        return copy
