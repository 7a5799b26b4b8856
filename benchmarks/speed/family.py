"""Topic: what the family's other networks cost beside a plain PixArt of the same width and depth, counted and in turns.

A ControlNet of 13 of 28 blocks (as many of fewer), inner loop feedback on the middle half, PT-DiT, FlexDiT at timesteps
of each density, its pooled blocks on untrained weights, and a negative prompt by normalized attention guidance (NAG).
Counted work is that of all 28 blocks, even where fewer are timed.
"""
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from pixart.accelerate.cost import Costs
from pixart.accelerate.flexdit_cost import FlexDiTCosts
from pixart.accelerate.pooled_values import PooledValues
from pixart.model.controlnet import Controlled
from pixart.model.feedback import Feedback, InnerLoop
from pixart.model.flexdit_config import FlexDiTConfig
from pixart.model.nag import NAG
from pixart.model.policy import Step
from pixart.model.to_flexdit import to_flexdit
from pixart.model.transformer import PixArtTransformer
from pixart.pt_dit.cost import PTDiTCosts
from pixart.pt_dit.transformer import PTDiT
from pixart.train.method_settings import IlfMethod

from ..instruments.cases import Case
from ..instruments.networks import controlnet, given, transformer, with_random_weights
from ..instruments.notes import Notes
from ..instruments.setting import DTYPES, Setting
from ..instruments.timing import paired_ratio, turns
from .family_memory import measure as memory_of
from .family_memory import pt_dit
from .wish import Wish, config_for, pixels

TIMED, COUNTED = "Other networks of the family, one pass in turns with a plain one", "Their work, counted for 28 blocks"
TIMESTEPS = (100.0, 400.0, 700.0, 999.0)        # one of each density of FlexDiT
CONTROL_SHARE = 13 / 28
AVOIDED_TOKENS = 20             # a negative prompt of a dozen words
WHOLE, SEGMENTED = 28, 8        # blocks of the published models; fewest that FlexDiT's segments divide
PT_DITS = {"PT-DiT, shifted windows (published)": True, "PT-DiT, windows not shifted": False}
Runs = dict[str, Callable[[], Tensor]]


def cases(setting: Setting, wish: Wish) -> dict[str, Case]:
    found: dict[str, Case] = {"work, counted": partial(counted, wish)}
    found |= {f"memory of a pass, {side} px": partial(memory_of, side, wish) for side in wish.sides}
    return found | {
        f"{what}, {side} px": partial(compared, make, least, side, wish) for side in wish.sides
        for what, make, least in (("control", control_runs, 2), ("feedback", feedback_runs, 4),
                                  ("PT-DiT", pt_dit_runs, 1), ("FlexDiT", flexdit_runs, SEGMENTED),
                                  ("NAG", nag_runs, 1))}


@torch.inference_mode()
def compared(make: Callable[..., Runs], least: int, side: int, wish: Wish, setting: Setting,
             notes: Notes) -> None:
    """least: blocks that a network needs."""
    name, config = wish.main[1], config_for(side, setting)
    config = replace(config, depth=max(least, config.depth))
    plain = transformer(config, DTYPES[name], setting.device)
    inputs = given(config, [pixels(side, setting) // 8] * 2, [wish.tokens], setting.device, DTYPES[name])
    inputs = {key: inputs[key] for key in ("latent", "timestep", "context")}
    found = turns({"": partial(plain, **inputs), **make(plain, inputs, setting)}, setting)
    for title, each in found.items():
        notes.row(TIMED, px=side, dtype=name, blocks=config.depth, network=title or "PixArt", ms=min(each),
                  **{"/ PixArt": paired_ratio(each, found[""])})


def control_runs(plain: PixArtTransformer, inputs: dict[str, Tensor], setting: Setting) -> Runs:
    config = plain.config
    blocks = max(1, round(CONTROL_SHARE * config.depth))
    both = Controlled(plain, controlnet(config, min(blocks, config.depth - 1), inputs["latent"].dtype, setting.device))
    return {f"with a ControlNet of {blocks} blocks": partial(both, **inputs, hint=inputs["latent"])}


def feedback_runs(plain: PixArtTransformer, inputs: dict[str, Tensor], setting: Setting) -> Runs:
    feedback = with_random_weights(Feedback(plain.config, *IlfMethod().blocks(plain.config.depth),
                                            dtype=inputs["latent"].dtype, device=setting.device), 0)
    return {f"with feedback on blocks {feedback.first} to {feedback.last}": partial(
        plain, **inputs, policies=[InnerLoop(feedback)])}


def pt_dit_runs(plain: PixArtTransformer, inputs: dict[str, Tensor], setting: Setting) -> Runs:
    def network(shifted: bool) -> PTDiT:
        return with_random_weights(PTDiT(pt_dit(plain.config, shifted), dtype=inputs["latent"].dtype,
                                         device=setting.device), 0)
    return {title: partial(network(shifted), *inputs.values()) for title, shifted in PT_DITS.items()}


def flexdit_runs(plain: PixArtTransformer, inputs: dict[str, Tensor], setting: Setting) -> Runs:
    flex, pooled = to_flexdit(plain), PooledValues(plain.config, min(2, plain.config.depth))
    runs: Runs = {f"FlexDiT, timestep {t:g}": partial(flex, **{**inputs, "timestep": torch.full_like(
        inputs["timestep"], t)}) for t in TIMESTEPS}

    def pooled_pass() -> Tensor:
        step = Step(index=0, total=1, timestep=500.0, lanes=(0,), run=object())
        return plain(**inputs, policies=[pooled], step=step)
    return runs | {"two pooled blocks, no training": pooled_pass}


def nag_runs(plain: PixArtTransformer, inputs: dict[str, Tensor], setting: Setting) -> Runs:
    negative = inputs["context"][:1, :AVOIDED_TOKENS]
    nag = NAG(plain.config, negative)
    return {f"with NAG, {negative.shape[1]} tokens avoided": partial(plain, **inputs, policies=[nag])}


def counted(wish: Wish, setting: Setting, notes: Notes) -> None:
    """Multiplications and additions of matrix products, attention included."""
    for side in wish.sides:
        config = replace(config_for(side, setting), depth=WHOLE)
        here = pixels(side, setting)
        grid = (here // 16, here // 16)
        plain, flex = Costs(config, grid[0] * grid[1], wish.tokens).row(), FlexDiTConfig.of(config)
        work: dict[str, float] = {title: PTDiTCosts(pt_dit(config, shifted), here, here, wish.tokens).row()
                                  for title, shifted in PT_DITS.items()}
        work |= {f"FlexDiT, timestep {t:g}": FlexDiTCosts.at(flex, grid, t, wish.tokens).row() for t in TIMESTEPS}
        work["FlexDiT, mean"] = sum(FlexDiTCosts.at(flex, grid, float(t), wish.tokens).row()
                                    for t in range(0, 1000, 5)) / 200
        first, last = IlfMethod().blocks(WHOLE)
        work["with feedback"] = Costs(replace(config, depth=WHOLE + last - first + 2), grid[0] * grid[1],
                                      wish.tokens).row()
        for title, macs in {"PixArt": plain, **work}.items():
            notes.row(COUNTED, px=side, network=title, **{"G MACs": macs / 1e9, "/ PixArt": macs / plain})
