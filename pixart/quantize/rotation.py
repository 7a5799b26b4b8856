"""Rotations that spread large values over their neighbours before weights are rounded (ConvRot).

Groups of g columns are multiplied by a Hadamard matrix of order g = 4^n whose rows have equal sums: the n-fold
Kronecker product of the 4 x 4 one, divided by sqrt(g). It is symmetric and its own inverse, so that a layer whose
inputs are rotated too computes what it did before. Source: comfy_kitchen, tensor/int8_utils.py.
"""
import torch
from torch import Tensor

from .format import FormatOptions, positive_option

SETTING = "convrot_groupsize"
DEFAULT_GROUP = 256
GROUPS = (256, 64, 16)          # those the host has kernels for, best first
_COPIES: dict[tuple[torch.device, int], Tensor] = {}


def _hadamard(size: int) -> Tensor:
    matrix = four = 0.5 * torch.tensor([[1.0, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]])
    while len(matrix) < size:
        matrix = torch.kron(matrix, four)
    return matrix


def _hadamard_on(device: torch.device, size: int) -> Tensor:
    """The matrix on a device, copied there once: layers need it every time they run. It must not be modified."""
    if (device, size) in _COPIES:
        return _COPIES[device, size]
    with torch.inference_mode(False):       # a kept tensor must stay usable in training
        copy = _hadamard(size).to(device)
    if type(copy) is Tensor:                # not a fake tensor, made while something is traced
        _COPIES[device, size] = copy
    return copy


def rotate(weight: Tensor, group: int) -> Tensor:
    """(N, K) float -> the same shape, each group of columns rotated. Twice is the identity."""
    matrix = _hadamard_on(weight.device, group).to(weight.dtype)
    return (weight.unflatten(1, (-1, group)) @ matrix).flatten(1)


def largest_group(columns: int) -> int:
    """The largest group that divides the columns, 0 where none does."""
    return next((group for group in GROUPS if columns % group == 0), 0)


def rotation_group(options: FormatOptions) -> int:
    """The group of a file's settings."""
    return positive_option(options, SETTING, DEFAULT_GROUP)


def group_problem(options: FormatOptions, columns: int) -> str:
    """What is wrong with the group in a file's settings; "" if nothing is."""
    group = rotation_group(options)
    if group < 4 or group & (group - 1) or group.bit_length() % 2 == 0 or columns % group:
        return f"{SETTING} is {group or 'no number'}, not a power of 4 that divides its {columns} columns"
    return ""
