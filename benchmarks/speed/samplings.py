"""Topic: whole samplings by size, batch and number of steps, the prompt encoded before, and the decoding."""
from functools import partial

import torch

from pixart.generation.pipeline import Pipeline
from pixart.generation.request import Request
from pixart.vae import decode

from ..instruments.cases import Case
from ..instruments.networks import autoencoder, encoded, transformer
from ..instruments.notes import Notes
from ..instruments.setting import DTYPES, Setting
from ..instruments.timing import median, peak
from .wish import Wish, config_for, pixels

SAMPLINGS, DECODINGS = "Sampling, prompts encoded before", "Decoding"
FEW = 8                         # up to so many steps LCM, which has no guidance; above it DPM-Solver++ with guidance


def cases(setting: Setting, wish: Wish) -> dict[str, Case]:
    name = wish.main[1]
    found: dict[str, Case] = {f"sampling, {side} px, batch {batch}, {steps} steps":
                              partial(measure, side, batch, steps, name, wish)
                              for side in wish.sides for batch in wish.batches for steps in wish.steps}
    return found | {f"decoding, {side} px": partial(decoding, side, name) for side in wish.sides}


def measure(side: int, batch: int, steps: int, name: str, wish: Wish, setting: Setting, notes: Notes) -> None:
    config, here = config_for(side, setting), pixels(side, setting)
    model = transformer(config, DTYPES[name], setting.device)
    setting.tidy()
    few = steps <= FEW
    request = Request(("",) * batch, "", here, here, "lcm" if few else "dpm", steps)
    text = encoded(config, [wish.tokens] * batch)
    null = text if few else encoded(config, [1])
    taken = median(lambda: Pipeline.of(model).sample(request, text, null, batch=batch), setting)
    notes.row(SAMPLINGS, px=side, batch=batch, dtype=name, blocks=config.depth, sampler=request.sampler, steps=steps,
              **{"rows a step": batch * (1 if few else 2), "ms per image": taken / batch,
                 **(peak(setting) if setting.cuda else {})})


def decoding(side: int, name: str, setting: Setting, notes: Notes) -> None:
    vae = autoencoder(setting.tiny, DTYPES[name], setting.device)
    latents = torch.randn(1, 4, *[pixels(side, setting) // 8] * 2, device=setting.device)
    setting.tidy()
    taken = median(partial(decode, vae, latents, 0.18215), setting)
    notes.row(DECODINGS, px=side, dtype=name, **{"ms per image": taken, **(peak(setting) if setting.cuda else {})})
