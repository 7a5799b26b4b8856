"""Topic: a prompt through T5 of full width in every precision, in turns with transformers in bfloat16."""
import statistics
from functools import partial

import torch
from torch import nn

from pixart.text.quantized import T5_PRECISIONS, Bits
from pixart.text.t5 import T5Encoder

from ..instruments.cases import Case
from ..instruments.files import t5_folder, t5_sizes
from ..instruments.notes import Notes
from ..instruments.setting import Setting, need
from ..instruments.timing import Run, paired_ratio, turns
from .wish import Wish

TEXT = "A prompt through T5, in turns with transformers in bfloat16"
WORDS = "a small red house on a green hill beside a large blue lake "


def cases(setting: Setting, wish: Wish) -> dict[str, Case]:
    return {f"T5, {bits}": partial(measure, bits, wish.tokens) for bits in T5_PRECISIONS}


def measure(bits: Bits, tokens: int, setting: Setting, notes: Notes) -> None:
    """Milliseconds of both, and the median of their ratios."""
    if bits in (8, 4):
        need("bitsandbytes")
    encoder = T5Encoder(t5_folder(setting), bits, setting.device)
    prompt = WORDS * (1 + tokens // len(WORDS.split()))
    runs: dict[str, Run] = {"ours": partial(encoder.encode, [prompt], tokens),
                            "transformers": reference(encoder, prompt, tokens)}
    found = turns(runs, setting)
    notes.row(TEXT, precision=encoder.precision, layers=t5_sizes(setting)["num_layers"], tokens=tokens,
              ms=statistics.median(found["ours"]),
              **{"/ transformers": paired_ratio(found["ours"], found["transformers"])})


def reference(encoder: T5Encoder, prompt: str, tokens: int) -> Run:
    """The same prompt through transformers' own network."""
    from transformers import T5EncoderModel
    model: nn.Module = T5EncoderModel.from_pretrained(encoder.path, torch_dtype=torch.bfloat16)
    model.to(encoder.device).eval()
    ids = torch.tensor([encoder.tokenizer.encode(prompt, tokens)[0]], device=encoder.device)

    def run() -> object:
        with torch.inference_mode():
            return model(input_ids=ids).last_hidden_state
    return run
