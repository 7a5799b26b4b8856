"""One known update of a small model as every adapter of LyCORIS and ComfyUI keeps it, under every layout's names.

The update turns two rows of each weight by a small angle: it is of rank 2, and a rotation too, so that LoRA, its
relatives and the orthogonal methods can all express it.
"""
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pixart.checkpoint.layouts import diffusers_names

ANGLE = 0.3
ALPHA = 3.0              # so that a reader that misses alpha is off
Keys = dict[str, Tensor]


def turned_rows(weight: Tensor) -> tuple[int, int]:
    """Two rows of one block of four, as OFT cuts them."""
    start = 4 * (weight.shape[0] // 4 // 2)
    return start, start + 1


def rotation() -> Tensor:
    """The two-by-two rotation by ANGLE."""
    return torch.tensor([[math.cos(ANGLE), -math.sin(ANGLE)], [math.sin(ANGLE), math.cos(ANGLE)]])


def update(weight: Tensor) -> Tensor:
    """The update of one weight (rows, ...)."""
    first, second = turned_rows(weight)
    result = torch.zeros_like(weight)
    pair = weight[[first, second]].flatten(1)
    result[[first, second]] = (rotation() @ pair - pair).view(2, *weight.shape[1:])
    return result


def factors(weight: Tensor) -> tuple[Tensor, Tensor]:
    """up (rows, 2) and down (2, in) whose product is the update."""
    first, second = turned_rows(weight)
    up = torch.zeros(weight.shape[0], 2)
    up[first, 0] = up[second, 1] = 1.0
    return up, update(weight)[[first, second]].flatten(1)


def lora(weight: Tensor) -> Keys:
    up, down = factors(weight)
    kernel = weight.shape[2:]
    return {"lora_up.weight": up.view(*up.shape, *[1] * len(kernel)), "alpha": torch.tensor(ALPHA),
            "lora_down.weight": (down * 2 / ALPHA).view(2, *weight.shape[1:])}


def lora_ab(weight: Tensor) -> Keys:
    """peft's names; alpha is said elsewhere, or is the rank."""
    up, down = factors(weight)
    return {"lora_A.weight": down.view(2, *weight.shape[1:]), "lora_B.weight": up.view(
        *up.shape, *[1] * (weight.ndim - 2))}


def lora_flat(weight: Tensor) -> Keys:
    """As ComfyUI's own training keeps kernels."""
    up, down = factors(weight)
    return {"lora_up.weight": up, "lora_down.weight": down * 2 / ALPHA, "alpha": torch.tensor(ALPHA)}


def dora(weight: Tensor) -> Keys:
    return lora(weight) | {"dora_scale": (weight + update(weight)).flatten(1).norm(dim=1).view(
        -1, *[1] * (weight.ndim - 1))}


def dora_of_columns(weight: Tensor) -> Keys:
    lengths = (weight + update(weight)).transpose(0, 1).flatten(1).norm(dim=1)
    return lora(weight) | {"dora_scale": lengths.view(1, -1, *[1] * (weight.ndim - 2))}


def loha(weight: Tensor) -> Keys:
    """The second factor is all ones."""
    up, down = factors(weight)
    return {"hada_w1_a": up, "hada_w1_b": down * 2 / ALPHA, "hada_w2_a": torch.full((len(up), 2), 0.5),
            "hada_w2_b": torch.ones(2, down.shape[1]), "alpha": torch.tensor(ALPHA)}


def lokr_whole(weight: Tensor) -> Keys:
    """Both factors whole: alpha means nothing then."""
    return {"lokr_w1": torch.tensor([[0.5]]), "lokr_w2": 2 * update(weight), "alpha": torch.tensor(1e6)}


def lokr(weight: Tensor) -> Keys:
    """One block of rows out of two, times a low-rank half."""
    up, down = factors(weight)
    half = len(up) // 2
    block = turned_rows(weight)[0] // half
    first = torch.zeros(2, 1)
    first[block] = 1.0
    return {"lokr_w1": first, "lokr_w2_a": up[block * half:(block + 1) * half], "lokr_w2_b": down * 2 / ALPHA,
            "alpha": torch.tensor(ALPHA)}


def glora(weight: Tensor) -> Keys:
    """Half as an addition, half by turning the columns back and forth is not possible: the first factor is zero."""
    up, down = factors(weight)
    into = weight.shape[1]
    return {"a1.weight": torch.zeros(into, 2), "a2.weight": torch.zeros(2, into), "b1.weight": up,
            "b2.weight": down * 2 / ALPHA, "alpha": torch.tensor(ALPHA)}


def difference(weight: Tensor) -> Keys:
    return {"diff": update(weight)}


def replacement(weight: Tensor) -> Keys:
    return {"set_weight": weight + update(weight)}


def skew() -> Tensor:
    """The upper number of the antisymmetric matrix whose Cayley rotation turns by ANGLE."""
    return torch.tensor(math.tan(ANGLE / 2))


def oft(weight: Tensor) -> Keys:
    """Blocks of four rows; Cayley's formula, transposed as LyCORIS applies it."""
    first, _ = turned_rows(weight)
    blocks = torch.zeros(weight.shape[0] // 4, 4, 4)
    blocks[first // 4, 0, 1] = skew()
    return {"oft_blocks": blocks}


def boft(weight: Tensor) -> Keys:
    """One step over blocks of two rows."""
    first, _ = turned_rows(weight)
    blocks = torch.zeros(1, weight.shape[0] // 2, 2, 2)
    blocks[0, first // 2, 0, 1] = -skew()
    return {"oft_blocks": blocks, "alpha": torch.tensor(0.0)}


ADAPTERS: dict[str, Callable[[Tensor], Keys]] = {
    "LoRA": lora, "LoRA of peft": lora_ab, "LoRA with flat kernels": lora_flat, "DoRA": dora,
    "DoRA of columns": dora_of_columns, "LoHa": loha, "LoKr": lokr, "LoKr with whole factors": lokr_whole,
    "GLoRA": glora, "full difference": difference, "replacement": replacement, "OFT": oft, "BOFT": boft,
}

LAYOUTS: dict[str, tuple[str, bool, bool]] = {        # prefix, names of diffusers, joined by underscores
    "peft": ("base_model.model.", True, False), "official": ("unet.base_model.model.", True, False),
    "diffusers": ("transformer.", True, False), "OneTrainer": ("lora_transformer_", True, True),
    "kohya": ("lora_unet_", False, True), "kohya, diffusers names": ("lora_unet_", True, True),
    "LyCORIS": ("lycoris_", True, True), "LyCORIS, own names": ("lycoris_", False, True),
    "ComfyUI": ("diffusion_model.", False, False),
}
STOCK = ("peft", "official", "diffusers", "kohya", "ComfyUI")       # what ComfyUI itself knows of a PixArt


def written(adapter: str, layout: str, weights: Mapping[str, Tensor]) -> Keys:
    """The update of each of these weights (reference module -> whole weight)."""
    prefix, diffusers, joined = LAYOUTS[layout]
    result = {}
    for module, weight in weights.items():
        names = diffusers_names(f"{module}.weight") if diffusers else None
        slices = [(module, weight)] if names is None else list(zip(
            (name.removesuffix(".weight") for name in names), weight.chunk(len(names)), strict=True))
        for name, part in slices:
            stem = prefix + (name.replace(".", "_") if joined else name)
            tensors = ADAPTERS[adapter](part)
            result |= {f"{stem}.{kind}": tensor.clone().contiguous() for kind, tensor in tensors.items()}
    return result


def updated(layout: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Reference module -> weight with the update; layouts with parts of fused weights turn rows in each part."""
    result = {}
    for module, weight in weights.items():
        count = len(diffusers_names(f"{module}.weight") or (1,)) if LAYOUTS[layout][1] else 1
        result[module] = torch.cat([part + update(part) for part in weight.chunk(count)])
    return result
