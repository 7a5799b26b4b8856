"""Empty latents on the host's device."""
from typing import Any

import torch


def empty_latent(height: int, width: int, pictures: int) -> dict[str, Any]:
    """LATENT of zeros for pictures of `height` x `width` pixels, multiples of 8."""
    from comfy.model_management import intermediate_device
    return {"samples": torch.zeros(pictures, 4, height // 8, width // 8, device=intermediate_device())}
