"""Topic: passes with quantised weights, dequantised whenever a layer runs, beside 16 bits, in turns."""
from functools import partial

import torch

from pixart.config import PixArtConfig
from pixart.model.transformer import PixArtTransformer
from pixart.quantize.convert import MATRICES
from pixart.quantize.formats import TARGETS
from pixart.quantize.layer import keep_quantized

from ..instruments.cases import Case
from ..instruments.networks import as_passed, given, transformer
from ..instruments.notes import Notes
from ..instruments.setting import DTYPES, Setting
from ..instruments.timing import medians
from .wish import Wish, config_for, pixels

KEPT_QUANTIZED = "One pass with weights kept quantised, in turns with 16 bits"


def cases(setting: Setting, wish: Wish) -> dict[str, Case]:
    return {f"quantised, {target}": partial(measure, target, wish) for target in TARGETS}


@torch.inference_mode()
def measure(target: str, wish: Wish, setting: Setting, notes: Notes) -> None:
    side, name = wish.main
    config = quantizable(config_for(side, setting), setting)
    plain, quantized = (transformer(config, DTYPES[name], setting.device) for _ in range(2))
    quantize(quantized, target, setting)
    inputs = as_passed(given(config, [pixels(side, setting) // 8] * 2, [wish.tokens], setting.device, DTYPES[name]))
    found = medians({"plain": partial(plain, **inputs), "quantised": partial(quantized, **inputs)}, setting)
    notes.row(KEPT_QUANTIZED, px=side, dtype=name, blocks=config.depth, format=target, ms=found["quantised"],
              **{"ms original": found["plain"], "slower": found["quantised"] / found["plain"],
                 "MiB": held(quantized) / 2 ** 20, "MiB original": held(plain) / 2 ** 20})


def quantizable(config: PixArtConfig, setting: Setting) -> PixArtConfig:
    """A rehearsal's width must suit every format."""
    from dataclasses import replace
    return replace(config, hidden=256, heads=4, depth=1) if setting.tiny else config


def quantize(model: PixArtTransformer, target: str, setting: Setting) -> None:
    """In place: all matrices of the blocks."""
    weights = {key.removesuffix(".weight"): value.float().cpu() for key, value in model.state_dict().items()
               if MATRICES.fullmatch(key)}
    chosen = TARGETS[target]
    keep_quantized(model, {layer: chosen.quantize(weight, chosen.settings(layer, model.config))
                           for layer, weight in weights.items()}, setting.device)


def held(model: PixArtTransformer) -> int:
    """Bytes of all weights."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
