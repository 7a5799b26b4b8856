"""Topic: one pass of the transformer, ours beside the host's own and diffusers, and the arithmetic it is."""
import statistics
import traceback
from functools import partial
from typing import Any

import torch

from pixart.config import PixArtConfig

from ..instruments.cases import Case
from ..instruments.networks import distance, given, transformer
from ..instruments.notes import Notes
from ..instruments.peers import Run, diffusers_run, native_run
from ..instruments.setting import DTYPES, Absent, Setting
from ..instruments.timing import matrix_peak, paired_ratio, pass_flops, peak, turns
from .wish import Wish, config_for, pixels

PASSES, CEILING = "One pass, implementations in turns", "The ceiling of the machine: one large matrix product"
SAME = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 1e-2}       # relative difference between implementations
AIM, HOST_LEAST = 1.0, 32


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
    runs = implementations(config, pixels(side, setting) // 8, batch, name, wish, setting, notes)
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


def native(config: PixArtConfig, state: dict, inputs: dict, side: int, dtype: torch.dtype, setting: Setting) -> Run:
    """side: latent pixels, which the host's positions round to multiples of 64: below half of that to 0."""
    if side <= HOST_LEAST:
        raise Absent(f"the host's own PixArt cannot draw {8 * side} px (positions divided by 0)")
    return native_run(setting.host(), config, state, inputs, dtype, setting.device)


def held_by(run: Run, setting: Setting) -> dict[str, float | None]:
    """The most that a pass holds, the weights of all implementations included."""
    setting.tidy()
    run()
    return peak(setting)


def implementations(config: PixArtConfig, side: int, batch: int, name: str, wish: Wish, setting: Setting,
                    notes: Notes) -> dict[str, Run]:
    """Ours, and of the others those that are here."""
    dtype = DTYPES[name]
    model = transformer(config, dtype, setting.device)
    state = {key.replace("_table.weight", "_table"): value for key, value in model.state_dict().items()}
    inputs = given(config, [side] * 2, [wish.tokens] * batch, setting.device, dtype)
    inputs = {key: inputs[key] for key in ("latent", "timestep", "context")}
    runs: dict[str, Run] = {"ours": partial(model, **inputs)}
    others: dict[str, Any] = {"diffusers": partial(diffusers_run, config, state, inputs, dtype, setting.device),
                              "host, native": partial(native, config, state, inputs, side, dtype, setting)}
    for title, make in others.items():
        try:
            runs[title] = make()
        except (ImportError, Absent) as error:
            notes.absent(f"beside {title}", str(error).splitlines()[0])
        except Exception as error:          # another implementation that breaks leaves the others to compare
            traceback.print_exc()
            notes.failed(f"beside {title}", error)
    return runs
