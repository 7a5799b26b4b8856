"""LPIPS (Zhang et al. 2018, arXiv 1801.03924): how different two images look, in the maps of a VGG-16.

The weights are two published files that users put into one folder: torchvision's network, and what the package lpips
learned on top of it. Nothing is downloaded.
"""
import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..reward.clip_files import as_float32, check_shapes
from ..weights.locate import Kind
from ..weights.reader import open_weights

NETWORK, LINEAR = "vgg16-397923af.pth", "vgg.pth"
EXPECTED = {NETWORK: f"{NETWORK}, VGG-16 of torchvision (download.pytorch.org/models)",
            LINEAR: f"{LINEAR} of the package lpips (lpips/weights/v0.1)"}
VGG_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))     # channels; halved in between
MEAN, DEVIATION = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)                       # of images in -1..1
EPSILON = 1e-10
LEAST = 16                  # pixels of a side, so that the last map is not empty


class Lpips(nn.Module):
    """Images a and b (B, 3, H, W) in -1..1, sides of at least 16 pixels -> their distances (B,), 0 for equal ones."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.ends: list[int] = []           # after which layer a stage's maps are read
        width = 3
        for number, stage in enumerate(VGG_STAGES):
            layers += [nn.MaxPool2d(2)] if number else []
            for channels in stage:
                layers += [nn.Conv2d(width, channels, 3, padding=1), nn.ReLU()]
                width = channels
            self.ends.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)                      # numbered as in torchvision
        self.weights = nn.ParameterList(torch.zeros(1, stage[-1], 1, 1) for stage in VGG_STAGES)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(1, 3, 1, 1), persistent=False)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Of every stage, (B, C, h, w), each position's channels scaled to unit length."""
        x, found = (images - self.mean) / self.deviation, []
        for place, layer in enumerate(self.features):
            x = layer(x)
            if place in self.ends:
                length = x.square().sum(1, keepdim=True).add(1e-20).sqrt()     # a root of 0 has no finite gradient
                found.append(x / (length + EPSILON))
        return found

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        if a.shape != b.shape or a.ndim != 4 or a.shape[1] != 3 or min(a.shape[2:]) < LEAST:
            raise ValueError(f"images of {tuple(a.shape)} and {tuple(b.shape)}; LPIPS compares two of (B, 3, H, W) "
                             f"with sides of at least {LEAST}")
        distances = [F.conv2d((x - y).square(), weight).mean((1, 2, 3))
                     for x, y, weight in zip(self.maps(a), self.maps(b), self.weights)]
        return torch.stack(distances).sum(0)


def load_lpips(folder: Path) -> Lpips:
    """From the two files, in float32, frozen. Raises FileNotFoundError, CheckpointError (a ValueError)."""
    network = Lpips()
    network.features.load_state_dict(read(folder / NETWORK, r"features\.(.+)", network.features))
    network.weights.load_state_dict(read(folder / LINEAR, r"lin(\d)\.model\.1\.weight", network.weights))
    return network.eval().requires_grad_(False)


def read(file: Path, names: str, part: nn.Module) -> dict[str, Tensor]:
    """The tensors of this pattern, named by its group, as float32 copies: exactly those of `part`."""
    if not file.is_file():
        raise FileNotFoundError(f"a file of LPIPS is missing, {EXPECTED[file.name]}: {file}")
    tensors = open_weights(file, Kind(EXPECTED[file.name])).tensors
    found = {match[1]: tensor for name, tensor in tensors.items() if (match := re.fullmatch(names, name))}
    check_shapes(found, part.state_dict(), file, EXPECTED[file.name])
    return as_float32(found, file, EXPECTED[file.name])
