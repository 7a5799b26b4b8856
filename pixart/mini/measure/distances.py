"""Distance of generated from real images as sets, in the judge's features: Frechet and kernel distance."""
import torch
from torch import Tensor

from .batches import BenchImages, measure_each
from .judges import ImageJudge


def features_of(judge: ImageJudge, images: BenchImages, batch: int, device: torch.device) -> Tensor:
    """(n, F) float64 on the CPU, in the order of the prompts."""
    def read(some: Tensor) -> Tensor:
        with torch.inference_mode():
            return judge.features(some).float()
    return measure_each(images, batch, device, read).double()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|mean a - mean b|^2 + tr(A + B - 2 sqrt(A B)) of two sets of features (n, F), float64 (Heusel et al. 2017).

    Biased upwards, the more so the fewer images there are; the bias depends on what is measured.
    """
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    root = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt().sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * root).item()


def kernel(a: Tensor, b: Tensor) -> Tensor:
    """(n, F), (m, F) -> (n, m): the cubic kernel of the kernel inception distance (Binkowski et al. 2018)."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def kernel_distances(generated: Tensor, real: Tensor) -> Tensor:
    """Squared maximum mean discrepancy, split over the prompts: (n,), whose mean is the distance.

    generated, real (n, F) float64, row i of both of the same scene, which may depend on each other. The distance is the
    unbiased estimate over all pairs of different prompts (Gretton et al. 2012, lemma 6); entry i is its jackknife
    pseudo-value, n times the estimate minus n - 1 times the estimate without prompt i. So the distance has a
    standard error, an interval and paired differences like any mean over prompts.
    """
    count = len(generated)
    if count < 3:
        raise ValueError(f"{count} images; a kernel distance needs at least 3")
    cross = kernel(generated, real)
    pairs = kernel(generated, generated) + kernel(real, real) - cross - cross.T
    of_one = pairs.sum(1) - pairs.diagonal()                       # sum over all other prompts
    total = of_one.sum()
    without = (total - 2 * of_one) / ((count - 1) * (count - 2))
    return count * total / (count * (count - 1)) - (count - 1) * without
