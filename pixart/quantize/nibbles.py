"""Two numbers of 4 bits in a byte."""
import torch
from torch import Tensor


def join_nibbles(codes: Tensor, high_first: bool = False) -> Tensor:
    """codes (N, K), the lowest 4 bits of each count -> uint8 (N, K / 2). high_first: even columns lie in high bits."""
    even, odd = codes[:, 0::2].to(torch.uint8) & 15, codes[:, 1::2].to(torch.uint8) & 15
    return (even << 4 | odd) if high_first else (odd << 4 | even)


def split_nibbles(joined: Tensor, high_first: bool = False) -> Tensor:
    """uint8 or int8 (N, K / 2) -> codes 0..15, uint8 (N, K)."""
    joined = joined.view(torch.uint8)
    low, high = joined & 15, joined >> 4
    return torch.stack((high, low) if high_first else (low, high), dim=-1).flatten(1)
