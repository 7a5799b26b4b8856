"""Encoded prompts: the features a transformer reads, their masks, and files of them for machines too small for T5."""
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..weights import CheckpointError, Kind, check_finite, check_floating, checked_entries, open_weights
from ..weights.safetensors_file import write_tensors
from ..weights.settings import Check, list_of, parse_value, shown, table, text, whole
from .tokens import PromptReport

EMBEDDINGS_FORMAT = "pixart-embeddings-1"
EMBEDDINGS_FILE = Kind("encoded prompts, written by python -m pixart encode")
EMBEDDINGS_DAMAGED = "The file is damaged; encode the prompts anew."
MOST_ENCODED = 1_000_000                # prompts in a file
TOKEN_COUNT = whole(0, 1 << 30)
REPORT_FIELDS: dict[str, Check] = {"prompt": text, "text": text, "tokens": TOKEN_COUNT, "needed": TOKEN_COUNT,
                                   "limit": TOKEN_COUNT, "cut": text, "notes": list_of(text, 1000)}


@dataclass(frozen=True)
class Encoded:
    """Text features of B prompts, padded with zeros to the longest of them.

    `context` (B, L, C) float32 and `mask` (B, L) bool, True for real tokens, both on the CPU; one report per prompt;
    `encoder`: which encoder made them, for display.
    """

    context: Tensor
    mask: Tensor
    reports: list[PromptReport]
    encoder: str = ""

    def __len__(self) -> int:
        return len(self.reports)

    def one(self, index: int) -> "Encoded":
        """Prompt `index` alone, without its padding; a copy."""
        length = int(self.mask[index].sum())
        return Encoded(self.context[index:index + 1, :length].clone(), self.mask[index:index + 1, :length].clone(),
                       [self.reports[index]], self.encoder)


def join_encoded(parts: Sequence[Encoded]) -> Encoded:
    """All prompts of `parts` in one, padded to the longest; always new tensors."""
    length = max(part.context.shape[1] for part in parts)
    rows = sum(len(part) for part in parts)
    context = parts[0].context.new_zeros((rows, length, parts[0].context.shape[2]))
    mask = torch.zeros((rows, length), dtype=torch.bool)
    row = 0
    for part in parts:
        end, tokens = row + len(part), part.context.shape[1]
        context[row:end, :tokens] = part.context
        mask[row:end, :tokens] = part.mask
        row = end
    return Encoded(context, mask, [report for part in parts for report in part.reports], parts[0].encoder)


def stack_captions(null: Encoded, caption: Encoded) -> tuple[Tensor, Tensor]:
    """Null rows, then caption rows, padded to one length: context (2B, L, C) and mask (2B, L)."""
    count, length = len(caption.mask), max(null.mask.shape[1], caption.mask.shape[1])
    context = caption.context.new_zeros(2 * count, length, caption.context.shape[2])
    mask = torch.zeros(2 * count, length, dtype=torch.bool)
    for part, at in ((null, 0), (caption, count)):
        context[at:at + count, :part.mask.shape[1]] = part.context
        mask[at:at + count, :part.mask.shape[1]] = part.mask
    return context, mask


def save_embeddings(path: str | Path, encoded: Encoded) -> None:
    """Write `encoded` with its prompts and reports as safetensors; an existing file is replaced atomically."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: the folder {path.parent} does not exist")
    metadata = {"format": EMBEDDINGS_FORMAT, "encoder": encoded.encoder,
                "reports": json.dumps([asdict(report) for report in encoded.reports])}
    tensors = {"context": encoded.context.float().cpu(), "mask": encoded.mask.cpu()}
    write_tensors(path, tensors, metadata)


def load_embeddings(path: str | Path) -> Encoded:
    """Read what `save_embeddings` wrote.

    Raises CheckpointError (a ValueError) for anything else, CheckpointNotFound (a FileNotFoundError too) for no file.
    """
    weights = open_weights(path, EMBEDDINGS_FILE)
    path, header = weights.path, weights.metadata
    if header.get("format") != EMBEDDINGS_FORMAT:
        raise CheckpointError(path, f"a file that holds no saved prompt (format {shown(header.get('format'))})",
                              f"{EMBEDDINGS_FILE.expected}, format {EMBEDDINGS_FORMAT}")
    reports = _reports(header, path)
    lacking = [name for name in ("context", "mask") if name not in weights.tensors]
    if lacking:
        raise CheckpointError(path, f"encoded prompts without {lacking[0]}", EMBEDDINGS_FILE.expected,
                              EMBEDDINGS_DAMAGED)
    context, mask = weights.tensors["context"], weights.tensors["mask"]
    check_floating("context", context, path, EMBEDDINGS_FILE.expected)
    check_finite("context", context, path, EMBEDDINGS_FILE.expected)
    if context.ndim != 3 or mask.shape != context.shape[:2] or mask.dtype != torch.bool or len(reports) != len(mask):
        raise CheckpointError(path, f"context {tuple(context.shape)}, mask {tuple(mask.shape)} {mask.dtype}, "
                              f"{len(reports)} prompts", "(B, L, C), (B, L) of bool, and B", EMBEDDINGS_DAMAGED)
    if not len(mask) or not mask.any(1).all():
        raise CheckpointError(path, "an encoded prompt without a single token, or no prompt", EMBEDDINGS_FILE.expected,
                              EMBEDDINGS_DAMAGED)
    return Encoded(context.float().clone(), mask.clone(), reports, header.get("encoder", ""))


def _reports(header: Mapping[str, str], path: Path) -> list[PromptReport]:
    """The report of each prompt in the header, checked."""
    reports = parse_value(header.get("reports", "[]"), path, "reports in its header", "a list of reports")
    checked_entries({"reports": reports}, {"reports": list_of(table, MOST_ENCODED)}, path, "its header")
    found = []
    for report in reports:
        known = checked_entries(report, REPORT_FIELDS, path, "a report in its header")
        lacking = sorted(REPORT_FIELDS.keys() - known.keys())
        if lacking:
            raise CheckpointError(path, f"a report in its header lacks {lacking[0]}", EMBEDDINGS_FILE.expected,
                                  EMBEDDINGS_DAMAGED)
        found.append(PromptReport(**{**known, "notes": tuple(known["notes"])}))
    return found
