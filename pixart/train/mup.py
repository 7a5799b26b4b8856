"""Maximal update parametrisation (muP): a learning rate found on a narrow PixArt holds for a wide one.

m = width / base width. Width grows by heads, their width stays. Yang et al. 2022 (Tensor Programs V, table 8), for
PixArt by Zheng et al. 2025 (Scaling Diffusion Transformers Efficiently via muP):

| weights | start | Adam's rate | decoupled decay | epsilon |
|---|---|---|---|---|
| biases, tables, and what reads latents, timesteps or captions | same variance at every width | 1 | 1 | 1 |
| width -> width | variance / m | 1/m | m | 1 |
| final_layer.linear | zero | 1/m | m | m |

The last row stands for the readout multiplier of the paper, output = W (x / m) + b, where W has rate 1, decay 1 and
epsilon 1. With V = W / m the gradient of V is m times that of W, so Adam's normalised step on W, divided by m, is a
step on V with rate / m, epsilon * m and decay * m: the same outputs at every step (abc-symmetry of Tensor Programs
IV). The model therefore has no multiplier and its files need no folding. What differs is the gradient itself: a limit
on its norm sees the readout's share m times as large. Adam forgets constant factors, so this shows only in steps
where clipping sets in; with `clip=inf` the two forms agree exactly.

The `mup` package is the oracle of the tests, not a dependency: it wants its own readout class inside the model and a
base model beside it, and installs torchvision, pandas and seaborn.
"""
from dataclasses import replace

import torch
from torch import nn

from ..checkpoint.layouts import file_name
from ..checkpoint.mup import READOUT
from ..config import PixArtConfig
from ..model.transformer import PixArtTransformer
from .base_shapes import base_shapes
from .initialize import initialize

TABLE_STD = 0.02        # of the scale-shift tables in the published PixArt-muP; standard is width ** -0.5


def at_width(config: PixArtConfig, width: int) -> PixArtConfig:
    """The same model at another width, with as many heads as keep their width. Raises ValueError if none do."""
    head = config.hidden // config.heads
    if width < 1 or width % head:
        raise ValueError(f"width {width} is not a multiple of the head width {head}, which muP keeps; use "
                         f"{max(head, width // head * head)} or {(width // head + 1) * head}")
    return replace(config, hidden=width, heads=width // head)


def parameter_kinds(config: PixArtConfig, base_width: int) -> dict[str, str]:
    """"vector", "hidden" or "readout" for each parameter of a model, under its name in files."""
    at_width(config, base_width)
    kinds = {name: "hidden" if len(shape) - shape.count(None) == 2 else "vector"
             for name, shape in base_shapes(config, base_width).items()}
    return {**kinds, READOUT: "readout"}


@torch.no_grad()
def initialize_mup(model: PixArtTransformer, seed: int, base_width: int,
                   table_std: float = TABLE_STD) -> PixArtTransformer:
    """Starting weights under muP, in place: those of `initialize` with the standard deviations of the base width.

    At the base width they equal `initialize` bit for bit with table_std = base_width ** -0.5.
    """
    initialize(model, seed)
    width, kinds = model.config.hidden, parameter_kinds(model.config, base_width)
    for name, parameter in model.named_parameters():
        name = file_name(name)
        if name.endswith("scale_shift_table"):
            parameter.mul_(table_std / width ** -0.5)
        elif name == "x_embedder.proj.weight":      # Xavier of few inputs: undo its change with the width
            inputs = parameter[0].numel()
            parameter.mul_(((width + inputs) / (base_width + inputs)) ** 0.5)
        elif kinds[name] == "hidden" and not name.startswith("blocks."):        # Xavier of the blocks has 1/m already
            parameter.mul_((base_width / width) ** 0.5)
    return model


def mup_parameter_groups(model: nn.Module, base_width: int, learning_rate: float, weight_decay: float = 0.0,
                         epsilon: float = 1e-8) -> list[dict]:
    """Groups for Adam or AdamW (any form with decoupled decay) that make training follow muP.

    Each group has `params`, `lr`, `weight_decay`, `eps`, and `rate_factor` = lr / learning_rate for schedules that
    set `lr` anew at each step. Frozen parameters are left out. At the base width all factors are 1. Raises ValueError
    for parameters that are not of a PixArt transformer, or a base width its heads cannot have.
    """
    if not isinstance(model, PixArtTransformer):
        raise ValueError(f"muP trains whole PixArt transformers; this is a {type(model).__name__}")
    kinds, multiplier = parameter_kinds(model.config, base_width), model.config.hidden / base_width
    members: dict[str, list[nn.Parameter]] = {"vector": [], "hidden": [], "readout": []}
    for name, parameter in model.named_parameters():
        kind = kinds.get(file_name(name))
        if kind is None:
            raise ValueError(f"no muP rule for the parameter {name}; muP trains whole PixArt transformers")
        if parameter.requires_grad:
            members[kind].append(parameter)
    return [_group(kind, parameters, multiplier, learning_rate, weight_decay, epsilon)
            for kind, parameters in members.items() if parameters]


def _group(kind: str, parameters: list[nn.Parameter], multiplier: float, learning_rate: float, weight_decay: float,
           epsilon: float) -> dict:
    scale = 1.0 if kind == "vector" else multiplier
    return {"params": parameters, "lr": learning_rate / scale, "weight_decay": weight_decay * scale,
            "eps": epsilon * (multiplier if kind == "readout" else 1.0), "rate_factor": 1 / scale}
