"""Encoded prompts: the features a transformer reads, their masks, and files of them for machines too small for T5."""
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..atomic import replacing
from .tokens import PromptReport

EMBEDDINGS_FORMAT = "pixart-embeddings-1"


@dataclass(frozen=True)
class Encoded:
    """Text features of B prompts, padded with zeros to the longest of them.

    `context` (B, L, C) float32 and `mask` (B, L) bool, True for real tokens, both on the CPU; one report per prompt;
    `encoder`: which encoder made them, for people.
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


def save_embeddings(path: str | Path, encoded: Encoded) -> None:
    """Write `encoded` with its prompts and reports as safetensors; a file that was there is replaced in one step."""
    from safetensors.torch import save_file

    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: the folder {path.parent} does not exist")
    metadata = {"format": EMBEDDINGS_FORMAT, "encoder": encoded.encoder,
                "reports": json.dumps([asdict(report) for report in encoded.reports])}
    tensors = {"context": encoded.context.float().contiguous().cpu(), "mask": encoded.mask.contiguous().cpu()}
    with replacing(path) as beside:
        save_file(tensors, beside, metadata=metadata)


def load_embeddings(path: str | Path) -> Encoded:
    """Read what `save_embeddings` wrote. FileNotFoundError or ValueError, naming the file, for anything else."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            stored = set(file.keys()) & {"context", "mask"}
            tensors = {name: file.get_tensor(name).clone() for name in stored}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file or is damaged: {error}") from error
    if metadata.get("format") != EMBEDDINGS_FORMAT:
        raise ValueError(f"{path} holds no saved prompt (format {metadata.get('format')!r}, expected "
                         f"{EMBEDDINGS_FORMAT!r}); choose a file made by saving PixArt embeddings")
    return _checked(path, tensors, metadata)


def _checked(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Encoded:
    try:
        reports = [PromptReport(**{**report, "notes": tuple(report["notes"])})
                   for report in json.loads(metadata["reports"])]
        context, mask = tensors["context"], tensors["mask"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is a damaged embeddings file: {error!r}") from error
    if context.ndim != 3 or mask.shape != context.shape[:2] or mask.dtype != torch.bool or len(reports) != len(mask):
        raise ValueError(f"{path} is a damaged embeddings file: context {tuple(context.shape)}, "
                         f"mask {tuple(mask.shape)} {mask.dtype}, {len(reports)} prompts")
    return Encoded(context.float(), mask, reports, metadata.get("encoder", ""))
