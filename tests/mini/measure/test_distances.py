"""Frechet and kernel distance on cases whose answer is known."""
import math

import pytest
import torch

from pixart.mini.measure.distances import frechet_distance, kernel, kernel_distances


def gaussian(count: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_frechet_distance_of_equal_sets_is_zero():
    features = gaussian(500, 6, 0)
    assert abs(frechet_distance(features, features)) < 1e-9


def test_frechet_distance_of_known_gaussians():
    """Shift by d and scale by s in n dimensions: d^2 + n (s - 1)^2."""
    base, other = gaussian(200_000, 3, 0), gaussian(200_000, 3, 1) * 3 + 2
    assert abs(frechet_distance(base, other) - (3 * 4 + 3 * 4)) < 0.3


def by_definition(drawn: torch.Tensor, real: torch.Tensor) -> float:
    """Sum over all ordered pairs of different sentences, straight from the formula."""
    total, count = 0.0, len(drawn)
    for i in range(count):
        for j in range(count):
            if i != j:
                rows = [x[None] for x in (drawn[i], drawn[j], real[i], real[j])]
                a, b, c, d = rows
                total += (kernel(a, b) + kernel(c, d) - kernel(a, d) - kernel(b, c)).item()
    return total / (count * (count - 1))


def test_kernel_distance_is_the_mean_of_its_parts_and_these_are_pseudo_values():
    drawn, real = gaussian(12, 4, 0) + 0.5, gaussian(12, 4, 1)
    parts, whole = kernel_distances(drawn, real), by_definition(drawn, real)
    assert parts.mean().item() == pytest.approx(whole, rel=1e-9)
    for i in (0, 7):
        rest = [k for k in range(12) if k != i]
        assert parts[i].item() == pytest.approx(12 * whole - 11 * by_definition(drawn[rest], real[rest]), rel=1e-9)


def test_kernel_distance_has_no_bias_and_its_error_is_right():
    """Of one distribution it is zero on average; of two, repeated draws scatter as the standard error says."""
    same = [kernel_distances(gaussian(40, 5, 2 * k), gaussian(40, 5, 2 * k + 1)).mean().item() for k in range(200)]
    mean = sum(same) / 200
    spread = math.sqrt(sum((x - mean) ** 2 for x in same) / 199)
    assert abs(mean) < 3 * spread / math.sqrt(200)
    values, errors = [], []
    for k in range(200):
        parts = kernel_distances(gaussian(60, 5, 2 * k) + 0.6, gaussian(60, 5, 2 * k + 1))
        values.append(parts.mean().item())
        errors.append((parts.std() / math.sqrt(60)).item())
    mean = sum(values) / 200
    spread = math.sqrt(sum((x - mean) ** 2 for x in values) / 199)
    assert sum(errors) / 200 == pytest.approx(spread, rel=0.2)


def test_equal_sets_have_no_kernel_distance_and_no_error():
    features = gaussian(30, 4, 0)
    assert kernel_distances(features, features).abs().max() < 1e-9
    with pytest.raises(ValueError, match="2 images"):
        kernel_distances(features[:2], features[:2])
