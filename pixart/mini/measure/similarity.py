"""Similarity of two images of the same prompt: by pixels, and by the judge's features."""
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .batches import BenchImages, each_pair
from .judges import ImageJudge

ROUNDING = 1 / (12 * 255 ** 2)     # mean squared error of storing an image in 8 bits


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """(B, 3, H, W) in 0..1 -> (B,): peak signal-to-noise ratio in dB.

    An error below that of 8-bit storage counts as that error, so that equal images have 58.9 dB and not infinity.
    """
    return -10 * (a - b).square().mean((1, 2, 3)).clamp(min=ROUNDING).log10()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """(B, 3, H, W) in 0..1, sides of at least 11 -> (B,): structural similarity (Wang et al. 2004).

    Gaussian window of 11 pixels and sigma 1.5, constants 0.01 and 0.03, mean over channels and over all windows that
    lie wholly inside the image.
    """
    channels = a.shape[1]
    ramp = torch.arange(11, device=a.device) - 5.0
    bell = (-ramp.square() / (2 * 1.5 ** 2)).exp()
    bell = bell / bell.sum()

    def blur(x: Tensor) -> Tensor:
        rows = F.conv2d(x, bell.to(x).view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
        return F.conv2d(rows, bell.to(x).view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a.square(), blur(b * b) - mean_b.square()
    both = blur(a * b) - mean_a * mean_b
    light = (2 * mean_a * mean_b + 0.01 ** 2) / (mean_a.square() + mean_b.square() + 0.01 ** 2)
    return (light * (2 * both + 0.03 ** 2) / (var_a + var_b + 0.03 ** 2)).mean((1, 2, 3))


@torch.inference_mode()
def judge_lpips(judge: ImageJudge, a: Tensor, b: Tensor) -> Tensor:
    """(B, 3, H, W) in 0..1 -> (B,): distance of the judge's convolution maps, 0 for equal images.

    As LPIPS (Zhang et al. 2018) with the judge in place of an ImageNet network and without learned weights: each
    position's channels scaled to unit length, squared differences summed over channels, averaged over positions, and
    over maps. Below 2; only comparable within one judge.
    """
    return map_distance(judge.maps(a), judge.maps(b))


def map_distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Maps of two batches of images, each (B, C, h, w) -> (B,), see `judge_lpips`; differentiable."""
    maps = [(F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1).mean((1, 2)) for x, y in zip(a, b)]
    return torch.stack(maps).mean(0)


def similarities(judge: ImageJudge, images: BenchImages, reference: BenchImages, batch: int,
                 device: torch.device) -> dict[str, Tensor]:
    """psnr, ssim and lpips of every prompt, (n,) each, float64 on the CPU."""
    def all_three(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([psnr(a, b), ssim(a, b), judge_lpips(judge, a, b).clone()], 1)
    values = each_pair(images, reference, batch, device, all_three).double()
    return dict(zip(("psnr", "ssim", "lpips"), values.unbind(1)))
