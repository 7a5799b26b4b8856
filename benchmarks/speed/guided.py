"""Topic: both prompts of a guided step, of unequal lengths, in one pass and in two."""
from functools import partial

import torch

from ..instruments.cases import Case
from ..instruments.networks import as_passed, distance, given, row, transformer
from ..instruments.notes import Notes
from ..instruments.setting import DTYPES, Setting
from ..instruments.timing import paired_ratio, turns
from .wish import Wish, config_for, pixels

PAIRS = "A guided step: both prompts in one pass beside two passes, in turns"
SHORT = (1, 40)                 # tokens of the other prompt: an empty one, and a negative one
AIM, SAME = 0.95, {"fp32": 1e-4, "bf16": 5e-2, "fp16": 1e-2}


def cases(setting: Setting, wish: Wish) -> dict[str, Case]:
    return {f"guided step, {side} px, batch {batch}, {dtype}, {wish.tokens} and {short} tokens":
            partial(measure, side, batch, dtype, short, wish)
            for side, batch, dtype in wish.sizes() for short in SHORT}


@torch.inference_mode()
def measure(side: int, batch: int, name: str, short: int, wish: Wish, setting: Setting, notes: Notes) -> None:
    config = config_for(side, setting)
    model = transformer(config, DTYPES[name], setting.device)
    lengths = [wish.tokens, short] * batch
    both = given(config, [pixels(side, setting) // 8] * 2, lengths, setting.device, DTYPES[name])
    apart = [as_passed(joined([row(both, i) for i in range(first, len(lengths), 2)])) for first in (0, 1)]

    def one() -> torch.Tensor:
        return model(**both)

    def two() -> torch.Tensor:
        return torch.stack([model(**part) for part in apart], 1).flatten(0, 1)
    notes.check("one pass = two passes", f"{side} px, {name}, {short} tokens", distance(one(), two()), SAME[name])
    found = turns({"one": one, "two": two}, setting)
    ratio = paired_ratio(found["one"], found["two"])
    notes.row(PAIRS, px=side, batch=batch, dtype=name, blocks=config.depth, tokens=f"{wish.tokens} and {short}",
              **{"one pass ms": min(found["one"]), "two passes ms": min(found["two"]), "ratio": ratio})
    if not setting.tiny:
        notes.aim(f"one pass / two passes, {side} px, batch {batch}, {name}, {wish.tokens} and {short} tokens", ratio,
                  AIM)


def joined(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([each[name] for each in rows]) for name in rows[0]}
