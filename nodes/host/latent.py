"""Empty latents on the host's device, and whether the images of a batch fit into memory."""
from typing import Any

import torch

IMAGE_BYTES_PER_PIXEL = 12  # of a finished image: three float32 numbers


def empty_latent(height: int, width: int, images: int) -> dict[str, Any]:
    """LATENT of zeros for images of `height` x `width` pixels, multiples of 8.

    ValueError for more images than the machine's memory can hold when they are finished: the host makes a batch at
    once, and would find out only after sampling it.
    """
    from comfy.model_management import get_total_memory, intermediate_device
    room = int(get_total_memory(torch.device("cpu")))
    needed = images * height * width * IMAGE_BYTES_PER_PIXEL
    if needed > room:
        raise ValueError(f"{images} images of {width} x {height} take {needed / 1e9:.0f} GB, this machine has "
                         f"{room / 1e9:.0f}. A batch is made at once: ask for at most "
                         f"{room // (height * width * IMAGE_BYTES_PER_PIXEL)}, or queue several prompts.")
    return {"samples": torch.zeros(images, 4, height // 8, width // 8, device=intermediate_device())}
