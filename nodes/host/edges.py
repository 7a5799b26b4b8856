"""Edge maps of the host's IMAGEs, computed on the device the host chose."""
from pathlib import Path

from torch import Tensor

from ...pixart.control import EDGE_METHODS, edge_maps, fit, hed_edges, load_hed, opaque
from ...pixart.control.hed import HED_BYTES_PER_PIXEL
from ...pixart.control.images import one_by_one
from .guest import progress_on_node


def find_edges(image: Tensor, method: str, low: float, high: float, blur: float, strength: float, width: int,
               height: int) -> Tensor:
    """IMAGE (B, H, W, C) -> IMAGE (B, H, W, 3) of its edges, at width x height pixels (0: as `fit` has it)."""
    from comfy import model_management
    images = fit(opaque(image.movedim(-1, 1), EDGE_METHODS[method]), width, height)
    device = model_management.get_torch_device()

    def find(single: Tensor) -> Tensor:
        return edge_maps(single.to(device), method, low, high, blur, strength).to(single.device)
    return as_image(one_by_one(images, find, progress_on_node(len(images))))


def hed_image(image: Tensor, path: Path, width: int, height: int) -> Tensor:
    """IMAGE (B, H, W, C) -> IMAGE (B, H, W, 3) of its HED edges, at width x height pixels (0: as `fit` has it)."""
    from comfy import model_management, model_patcher
    images = fit(opaque(image.movedim(-1, 1)), width, height)
    offload = model_management.unet_offload_device()
    patcher = model_patcher.ModelPatcher(load_hed(path, offload), model_management.get_torch_device(), offload)
    needed = HED_BYTES_PER_PIXEL * images.shape[-2] * images.shape[-1]
    model_management.load_models_gpu([patcher], memory_required=needed)
    return as_image(hed_edges(patcher.model, images, progress_on_node(len(images))))


def as_image(maps: Tensor) -> Tensor:
    """(B, 1, H, W) -> IMAGE, on the device where the host keeps its results."""
    from comfy.model_management import intermediate_device
    return maps.to(intermediate_device()).movedim(1, -1).repeat(1, 1, 1, 3)
