"""HED, the edge network whose maps PixArt-delta's ControlNet was trained on (learned norm, mean of five logits).

Holistically-nested edge detection on a VGG-16 trunk, in the variant that takes RGB and has no fusion layer.
"""
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d, relu

from ..progress import CountProgress
from ..weights.errors import CheckpointError
from ..weights.locate import Kind
from ..weights.reader import open_weights
from ..weights.values import check_finite, check_floating
from .images import one_by_one, opaque, with_room

HED_FILE = "ControlNetHED.pth"
HED_EXPECTED = f"the edge network {HED_FILE} (37 tensors such as block1.convs.0.weight), as .pth or .safetensors"
HED_BLOCKS = ((3, 64, 2), (64, 128, 2), (128, 256, 3), (256, 512, 3), (512, 512, 3))  # channels in, out, convolutions
HED_LEAST_SIDE = 16                  # pixels; the last of four halvings must leave one
HED_BYTES_PER_PIXEL = 800            # most that is needed while a map is made: three activations of 64 channels
OTHER_PORT = ("moduleVgg", "netVgg", "moduleScore", "netScore", "moduleCombine", "netCombine")


class HedBlock(nn.Module):
    """Convolutions at one scale, and the projection to their side output."""

    def __init__(self, into: int, out: int, count: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(out if j else into, out, 3, padding=1) for j in range(count))
        self.projection = nn.Conv2d(out, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = relu(conv(x), inplace=True)
        return x


class HED(nn.Module):
    """The network; parameter names are those of ControlNetHED.pth. 14,716,168 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.zeros(1, 3, 1, 1))
        for index, sizes in enumerate(HED_BLOCKS, 1):
            setattr(self, f"block{index}", HedBlock(*sizes))

    def sides(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) RGB in 0..255, sides of at least 16 -> five logits (B, 1, h, w), each half the size before."""
        x = images - self.norm.to(images.device)
        sides: list[Tensor] = []
        for index in range(1, len(HED_BLOCKS) + 1):
            block = getattr(self, f"block{index}")
            x = block(max_pool2d(x, 2) if sides else x)
            sides.append(block.projection(x))
        return sides

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in 0..255 -> edges (B, 1, H, W) in 0..1, white on black."""
        size = images.shape[-2:]
        first, *others = (interpolate(side, size, mode="bilinear") for side in self.sides(images))
        return sum(others, first).div(5).sigmoid()


def load_hed(path: str | os.PathLike, device: torch.device | str = "cpu") -> HED:
    """The network from ControlNetHED.pth or the same weights as safetensors, in float32 whatever the file keeps.

    Raises CheckpointError, or its subclass CheckpointNotFound, for every other file.
    """
    weights = open_weights(path, Kind(HED_EXPECTED))
    with torch.device("meta"):
        network = HED()
    check_hed_tensors(path, weights.tensors, network.state_dict())
    network.load_state_dict({name: tensor.to(device, torch.float32, copy=True)
                             for name, tensor in weights.tensors.items()}, assign=True)
    return network.eval().requires_grad_(False)


def check_hed_tensors(path: str | os.PathLike, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError unless `found` has exactly the names and shapes of `wanted`, and finite numbers."""
    path = Path(path)
    if any(name.startswith(OTHER_PORT) for name in found):
        raise CheckpointError(path, "another HED network, network-bsds500 of pytorch-hed, which takes BGR images and "
                              "finds thinner lines", HED_EXPECTED, f"Get {HED_FILE} of lllyasviel/Annotators.")
    if set(found) != set(wanted):
        strange, lacking = sorted(set(found) - set(wanted)), sorted(set(wanted) - set(found))
        details = "; ".join(f"{len(names)} {what}, the first is {names[0]}"
                            for names, what in ((lacking, "tensors missing"), (strange, "not known")) if names)
        raise CheckpointError(path, f"not the HED network ({details})", HED_EXPECTED)
    shapes = [name for name in wanted if found[name].shape != wanted[name].shape]
    if shapes:
        first = shapes[0]
        raise CheckpointError(path, f"{len(shapes)} tensors of another shape, the first is {first} with "
                              f"{tuple(found[first].shape)} instead of {tuple(wanted[first].shape)}", HED_EXPECTED)
    for name, tensor in found.items():
        check_floating(name, tensor, path, HED_EXPECTED)
        check_finite(name, tensor, path, HED_EXPECTED)


@torch.no_grad()
def hed_edges(network: HED, images: Tensor, progress: CountProgress | None = None) -> Tensor:
    """(B, 1, 3 or 4, H, W) in 0..1, any size -> edge maps (B, 1, H, W) float32 in 0..1, at the images' own size.

    Computed one image at a time on the network's device, so 16 images of 1024 pixels take the memory of one
    (HED_BYTES_PER_PIXEL: 0.8 GB); the maps are on the images' device. Sides below 16 pixels are padded with their
    last pixel for the network. `progress(done, total)` is called after each image.
    """
    device = network.norm.device

    def find(image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        roomy = with_room(image.to(device).expand(-1, 3, -1, -1), HED_LEAST_SIDE)
        return network(roomy * 255)[..., :height, :width].to(image.device)
    return one_by_one(opaque(images), find, progress)
