"""A low-rank branch in 16 bits beside a rounded weight, which absorbs what rounding would lose most of.

As in SVDQuant (arXiv 2411.05007), without its smoothing: weight = up @ down + rounded rest.
"""
from collections.abc import Callable

import torch
from torch import Tensor

LOW_RANK_ROUNDS = 4  # of fitting the branch to what the rounded rest leaves


def low_rank_branch(weight: Tensor, rank: int, rounded: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """weight (N, K) float32 -> up (N, rank), down (rank, K), float16.

    rounded(rest (N, K)) gives the rest after rounding. The best of some rounds: branch of the weight, then of the
    weight less the rounded rest. Reproducible: it draws from a fixed seed of its own.
    """
    best, least, aim = None, torch.inf, weight
    for _ in range(LOW_RANK_ROUNDS):
        up, down = factors(aim, rank)
        rest = weight - up.float() @ down.float()
        kept = rounded(rest)
        error = float((rest - kept).norm())
        if error < least:
            best, least = (up, down), error
        aim = weight - kept
    assert best is not None
    return best


def factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of this rank, the singular values shared by both factors."""
    with torch.random.fork_rng(devices=[weight.device] if weight.is_cuda else []):
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(weight, q=min(rank + 8, *weight.shape), niter=4)
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).half(), (v[:, :rank] * root).T.half()
