"""Encoded prompts in files: written from CONDITIONING once, read again without a text encoder."""
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...pixart.text import Encoded, PromptReport, load_embeddings, save_embeddings
from . import folders
from .conditioning import compact_text
from .file_names import checked_name

# What a file of encoded prompts keeps; `pooled_output` is always empty for T5.
SAVED_EXTRAS = {"pooled_output", "attention_mask"}


def save_conditioning(conditioning: list, name: str, text: str) -> Path:
    """Write it as models/pixart_prompts/<name>.safetensors; `text` is for display. An existing file
    with the same numbers is left as it is. ValueError where it holds others, or where such a file would lose a part."""
    context = text_of(conditioning)
    tokens = context.shape[1]
    path = place_of(name)
    if path.is_file():
        if not same(load_embeddings(path).context, context):
            raise ValueError(f"another prompt is saved as {path.name} already; choose another name, or delete that "
                             f"file first: {path}")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    report = PromptReport(text, text, tokens, tokens, tokens)
    save_embeddings(path, Encoded(context, torch.ones(context.shape[:2], dtype=torch.bool), [report]))
    return path


def place_of(name: str) -> Path:
    """The file of a saved prompt. ValueError for what is no name."""
    return folders.saved_prompt_folder() / f"{checked_name(name)}.safetensors"


def text_of(conditioning: list) -> Tensor:
    """(1, L, C) float32 on the CPU, the real tokens of the only entry."""
    if len(conditioning) != 1 or conditioning[0][0].shape[0] != 1:
        count = sum(entry[0].shape[0] for entry in conditioning)
        raise ValueError(f"this CONDITIONING holds {count} prompts; expected one. Save each by itself, before they are "
                         "combined.")
    context, extra = conditioning[0]
    lost = sorted(key for key, value in extra.items() if key not in SAVED_EXTRAS and value is not None)
    if lost:
        raise ValueError(f"this CONDITIONING carries {', '.join(lost)}, which a saved prompt does not keep. Connect "
                         "PixArt Text Encode itself, with width and height 0; put other nodes behind PixArt Load "
                         "Prompt.")
    if extra.get("pooled_output") is not None:
        raise ValueError("this CONDITIONING is of another text encoder, it has a pooled_output; expected one of T5")
    compact, _, _ = compact_text(context, extra.get("attention_mask"))
    return compact.float().cpu()


def same(kept: Tensor, context: Tensor) -> bool:
    return kept.shape == context.shape and torch.equal(kept, context)


def load_conditioning(path: Path) -> tuple[list[Any], str]:
    """CONDITIONING of the only prompt in a file, and what is known of it in a line."""
    from comfy.model_management import intermediate_device
    encoded = load_embeddings(path)
    if len(encoded) != 1:
        raise ValueError(f"the file holds {len(encoded)} prompts; expected one. Save each in a file of its own: {path}")
    whole = encoded.one(0)
    report = whole.reports[0]
    known = f"{whole.context.shape[1]} tokens, {whole.context.shape[2]} numbers each"
    line = f"{known}: {report.prompt}" if report.prompt else known
    return [[whole.context.to(intermediate_device()), {"pooled_output": None}]], line
