"""Numbers by timestep, kept once on every device that asks for them."""
import torch
from torch import Tensor


class Table:
    """Values (n,), float64 on the CPU, and float32 wherever a training needs them: no device is sent float64."""

    def __init__(self, values: Tensor) -> None:
        self.values = values.double()
        self._there: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        """(n,) float32, copied to the device the first time only."""
        if device not in self._there:
            with torch.inference_mode(False):
                self._there[device] = self.values.float().to(device)
        return self._there[device]
