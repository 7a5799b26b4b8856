"""PT-DiT written down a second time: token by token in float64, under the names of the published file.

Windows, shifted windows and proxy cells are nothing but groups of tokens here: who attends to whom follows from each
token's row and column, without partitions, rolls or masks of windows.
"""
import math

import torch
from torch import Tensor

State = dict[str, Tensor]


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].double().T + state[f"{name}.bias"].double()


def norm(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def attention(state: State, name: str, x: Tensor, source: Tensor, heads: int, may: Tensor) -> Tensor:
    """x (N, D), source (M, D), may (N, M) bool."""
    q, k, v = (linear(state, f"{name}.to_{part}", each) for part, each in (("q", x), ("k", source), ("v", source)))
    width, parts = x.shape[1] // heads, []
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        scores = (q[:, own] @ k[:, own].T / math.sqrt(width)).masked_fill(~may, -math.inf)
        parts.append(scores.softmax(-1) @ v[:, own])
    return linear(state, f"{name}.to_out.0", torch.cat(parts, 1))


def same(groups: list) -> Tensor:
    return torch.tensor([[a == b for b in groups] for a in groups])


def block(state: State, name: str, x: Tensor, text: Tensor, t: Tensor, places: list[tuple[int, int]], heads: int,
          side: int, cell: int, shifted: bool) -> Tensor:
    """x (N, D) row by row, text (L, D) of real tokens only, t (6, D)."""
    cells = [(r // cell, c // cell) for r, c in places]
    kinds = sorted(set(cells))
    proxy = torch.stack([x[[each == kind for each in cells]].mean(0) for kind in kinds])
    all_of = torch.ones(len(proxy), len(proxy), dtype=torch.bool)
    proxy = proxy + attention(state, f"{name}.proxy_attn1", norm(proxy), norm(proxy), heads, all_of)
    seen = attention(state, f"{name}.pvisual_attn2", norm(x), norm(proxy), heads,
                     torch.ones(len(x), len(proxy), dtype=torch.bool))
    x = x + linear(state, f"{name}.linear_1_visual", seen)
    rows = state[f"{name}.scale_shift_table"].double() + t
    near = norm(x) * (1 + rows[1]) + rows[0]
    window = same([(r // side, c // side) for r, c in places])
    x = x + rows[2] * attention(state, f"{name}.attn1", near, near, heads, window)
    if shifted:
        three, half = state[f"{name}.proxy_scale_shift_table"].double() + t[:3], side // 2
        near = norm(x) * (1 + three[1]) + three[0]
        window = same([((r - half) // side, (c - half) // side) for r, c in places])     # cut off at the border
        said = attention(state, f"{name}.attn3", near, near, heads, window)
        x = x + linear(state, f"{name}.linear_2", three[2] * said)
    x = x + attention(state, f"{name}.attn2", x, text, heads, torch.ones(len(x), len(text), dtype=torch.bool))
    inner = gelu(linear(state, f"{name}.ff.net.0.proj", norm(x) * (1 + rows[4]) + rows[3]))
    return x + rows[5] * linear(state, f"{name}.ff.net.2", inner)


def waves(place: float, width: int) -> Tensor:
    angles = torch.tensor([place * 10000 ** (-k / (width // 2)) for k in range(width // 2)], dtype=torch.float64)
    return torch.cat([angles.sin(), angles.cos()])


def velocity(state: State, latent: Tensor, timestep: float, text: Tensor, heads: int, depth: int, side: int, cell: int,
             shifted: bool) -> Tensor:
    """latent (C, H, W) of a grid that windows divide, text (L, caption width) -> (all output channels, H, W)."""
    channels, height, width = latent.shape
    places = [(r, c) for r in range(height // 2) for c in range(width // 2)]
    kernel, bias = state["pos_embed.proj.weight"].double(), state["pos_embed.proj.bias"].double()
    hidden = len(bias)
    x = torch.stack([(kernel * latent[:, 2 * r:2 * r + 2, 2 * c:2 * c + 2].double()).sum((1, 2, 3)) + bias
                     + torch.cat([waves(0, hidden // 4), waves(c, 3 * hidden // 8), waves(r, 3 * hidden // 8)])
                     for r, c in places])
    angles = [timestep * 10000 ** (-k / 128) for k in range(128)]
    time = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles], dtype=torch.float64)
    name = "adaln_single.emb.timestep_embedder"
    time = linear(state, f"{name}.linear_2", silu(linear(state, f"{name}.linear_1", time)))
    six = linear(state, "adaln_single.linear", silu(time)).view(6, hidden)
    text = linear(state, "caption_projection.linear_2", gelu(linear(state, "caption_projection.linear_1",
                                                                    text.double())))
    for index in range(depth):
        x = block(state, f"transformer_blocks.{index}", x, text, six, places, heads, side, cell, shifted)
    shift, scale = state["scale_shift_table"].double() + time
    patches = linear(state, "proj_out", norm(x) * (1 + scale) + shift).view(len(places), 2, 2, -1)
    out = torch.zeros(patches.shape[-1], height, width, dtype=torch.float64)
    for (r, c), patch in zip(places, patches):
        out[:, 2 * r:2 * r + 2, 2 * c:2 * c + 2] = patch.permute(2, 0, 1)
    return out
