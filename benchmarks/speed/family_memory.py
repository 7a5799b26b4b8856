"""Part of the topic `family`: the peak memory of one pass of each network, computed: every allocation traced."""
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from pixart.config import PixArtConfig
from pixart.model.controlnet import Controlled, PixArtControlNet
from pixart.model.feedback import Feedback, InnerLoop
from pixart.model.flexdit import FlexDiT
from pixart.model.flexdit_config import FlexDiTConfig
from pixart.model.policy import Policy, Step
from pixart.model.transformer import PixArtTransformer
from pixart.pt_dit.config import PTDiTConfig
from pixart.pt_dit.transformer import PTDiT
from pixart.train.method_settings import IlfMethod

from ..instruments.held import GIB
from ..instruments.notes import Notes
from ..instruments.setting import Setting
from .memory import traced
from .wish import Wish, config_for, pixels

TABLE = "Memory of one pass of the family's networks, 16 bits, 28 blocks, computed"
WHOLE, CONTROL_BLOCKS, ROWS = 28, 13, 2         # two rows: a guided step
DTYPE = torch.bfloat16


def measure(side: int, wish: Wish, setting: Setting, notes: Notes) -> None:
    """FlexDiT is measured at the least noise, where it has most tokens."""
    config = replace(config_for(side, setting), depth=WHOLE)
    for name, make in makers(config).items():
        weights, beside = traced(partial(with_inputs, make, config, pixels(side, setting), wish.tokens))
        notes.row(TABLE, px=side, network=name, **{"weights GiB": weights / GIB, "activations GiB": beside / GIB,
                                                   "GiB": (weights + beside) / GIB})


Made = tuple[Sequence[nn.Module], Callable[..., object]]      # the networks, and their pass


def makers(config: PixArtConfig) -> dict[str, Callable[[], Made]]:
    return {"PixArt": lambda: alone(PixArtTransformer(config, dtype=DTYPE)),
            f"with a ControlNet of {CONTROL_BLOCKS} blocks": lambda: controlled(config),
            "with feedback": lambda: fed_back(config),
            "FlexDiT, timestep 0": lambda: flexdit(config),
            "PT-DiT": lambda: alone(PTDiT(pt_dit(config, True), dtype=DTYPE))}


def pt_dit(config: PixArtConfig, shifted: bool) -> PTDiTConfig:
    """A PT-DiT of the same width and depth."""
    shared = {name: getattr(config, name) for name in ("depth", "hidden", "heads", "caption_width", "caption_tokens",
                                                       "base_size", "position_scale")}
    return PTDiTConfig(shifted=shifted, micro_conditioning=False, **shared)


def alone(model: nn.Module) -> Made:
    return [model], model


def flexdit(config: PixArtConfig) -> Made:
    model = FlexDiT(FlexDiTConfig.of(config), dtype=DTYPE)
    step = Step(index=0, total=1, timestep=0.0, lanes=(0, 1), run=object())      # tells the density: no data
    return [model], lambda *given: model(*given, step=step)


def controlled(config: PixArtConfig) -> Made:
    both = Controlled(PixArtTransformer(config, dtype=DTYPE), PixArtControlNet(config, CONTROL_BLOCKS, dtype=DTYPE))
    return [both], lambda latent, *given: both(latent, *given, hint=latent)


def fed_back(config: PixArtConfig) -> Made:
    model, feedback = PixArtTransformer(config, dtype=DTYPE), Feedback(config, *IlfMethod().blocks(WHOLE), dtype=DTYPE)
    policies: list[Policy] = [InnerLoop(feedback)]
    return [model, feedback], lambda *given: model(*given, policies=policies)


def with_inputs(make: Callable[[], Made], config: PixArtConfig, side: int, tokens: int) -> Any:
    parts, run = make()
    latent = torch.zeros(ROWS, config.channels, side // 8, side // 8, dtype=DTYPE)
    context = torch.zeros(ROWS, tokens, config.caption_width, dtype=DTYPE)
    return nn.ModuleList(parts).eval().requires_grad_(False), lambda: run(latent, torch.zeros(ROWS), context)
