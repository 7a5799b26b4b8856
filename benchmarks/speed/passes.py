"""Topic: one pass of the transformer, ours beside the host's own and diffusers, and the arithmetic it is."""
import statistics
from functools import partial

import torch

from ..instruments.cases import Case
from ..instruments.networks import distance
from ..instruments.notes import Notes
from ..instruments.peers import Run, implementations
from ..instruments.setting import DTYPES, Setting
from ..instruments.timing import matrix_peak, paired_ratio, pass_flops, peak, turns
from .wish import Wish, config_for, pixels

PASSES, CEILING = "One pass, implementations in turns", "The ceiling of the machine: one large matrix product"
SAME = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 1e-2}       # relative difference between implementations
AIM = 1.0


def cases(setting: Setting, wish: Wish) -> dict[str, Case]:
    ceiling: dict[str, float] = {}
    found: dict[str, Case] = {"ceiling": partial(measure_ceiling, wish, ceiling)}
    return found | {f"pass, {side} px, batch {batch}, {dtype}": partial(measure, side, batch, dtype, wish, ceiling)
                    for side, batch, dtype in wish.sizes()}


def measure_ceiling(wish: Wish, ceiling: dict[str, float], setting: Setting, notes: Notes) -> None:
    ceiling.update(matrix_peak(setting, {name: DTYPES[name] for name in wish.dtypes}))
    for name, value in ceiling.items():
        notes.row(CEILING, dtype=name, **{"TFLOP/s": value})


@torch.inference_mode()
def measure(side: int, batch: int, name: str, wish: Wish, ceiling: dict[str, float], setting: Setting,
            notes: Notes) -> None:
    """Equal weights and inputs, every prompt whole, so that no implementation needs a mask."""
    config = config_for(side, setting)
    runs = implementations(config, pixels(side, setting) // 8, batch, wish.tokens, DTYPES[name], setting, notes)
    wanted = runs["ours"]()
    for title, run in runs.items():
        notes.check("same result as ours", f"{title}, {side} px, {name}", distance(run(), wanted), SAME[name])
    held = {title: held_by(run, setting) for title, run in runs.items()} if setting.cuda else {}
    found = turns(runs, setting)
    tokens = (pixels(side, setting) // 16) ** 2
    flops = batch * pass_flops(config, tokens, wish.tokens)
    for title, each in found.items():
        taken, ratio = statistics.median(each), paired_ratio(found["ours"], each)
        notes.row(PASSES, px=side, tokens=tokens, batch=batch, dtype=name, blocks=config.depth, implementation=title,
                  ms=taken, **{"best ms": min(each), "ours / this": ratio, "TFLOP": flops / 1e12,
                               "TFLOP/s": flops / taken / 1e9,
                               "of the ceiling %": 100 * flops / taken / 1e9 / ceiling[name]
                               if ceiling.get(name) else None}, **held.get(title, {}))
        if title != "ours" and not setting.tiny:
            notes.aim(f"ours / {title}, {side} px, batch {batch}, {name}", ratio, AIM)


def held_by(run: Run, setting: Setting) -> dict[str, float | None]:
    """Peak memory of a pass, the weights of all implementations included."""
    setting.tidy()
    run()
    return peak(setting)
