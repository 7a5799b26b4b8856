"""What quantisation costs each layer: error and size, as tables and JSON."""
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from ..files.atomic import replacing
from .format import Quantized


@dataclass(frozen=True)
class LayerError:
    """One layer. `relative`: norm of the error over norm of the weight; `worst`: largest error over largest weight."""

    layer: str
    shape: tuple[int, int]
    relative: float
    worst: float
    bits: float                 # per weight, scales included

    @property
    def kind(self) -> str:
        """The layer without its block, such as "attn.qkv"."""
        return self.layer.split(".", 2)[-1]

    @property
    def decibels(self) -> float:
        """Signal-to-noise ratio."""
        return -20 * math.log10(self.relative) if self.relative > 0 else math.inf


def error_of(layer: str, weight: Tensor, quantized: Quantized) -> LayerError:
    """The error of a quantised layer. weight (N, K) float: the original."""
    weight = weight.float()
    difference = quantized.dequantized() - weight
    length, largest = float(weight.norm()), float(weight.abs().amax())
    return LayerError(layer, quantized.shape, float(difference.norm()) / length if length else 0.0,
                      float(difference.abs().amax()) / largest if largest else 0.0,
                      8 * quantized.nbytes / weight.numel())


def error_table(errors: Sequence[LayerError], every: bool = False) -> str:
    """Markdown: one row for each kind of layer, with its worst block; or with `every` one for each layer."""
    head = ("| layer | shape | bits | relative error | dB | largest error |" if every else
            "| layers | shape | bits | relative error | worst layer | its error |")
    rows = [head, "|---|---|---|---|---|---|"]
    if every:
        return "\n".join(rows + [f"| {one.layer} | {one.shape[0]} x {one.shape[1]} | {one.bits:.2f} | "
                                 f"{one.relative:.4f} | {one.decibels:.1f} | {one.worst:.4f} |" for one in errors])
    for kind in dict.fromkeys(one.kind for one in errors):
        same = [one for one in errors if one.kind == kind]
        worst = max(same, key=lambda one: one.relative)
        rows.append(f"| {len(same)} x {kind} | {worst.shape[0]} x {worst.shape[1]} | {worst.bits:.2f} | "
                    f"{rms(same):.4f} | {worst.layer} | {worst.relative:.4f} |")
    rows.append(f"| all {len(errors)} | | {average_bits(errors):.2f} | {rms(errors):.4f} | | |")
    return "\n".join(rows)


def rms(errors: Sequence[LayerError]) -> float:
    """Root mean square of the relative errors."""
    return math.sqrt(sum(one.relative ** 2 for one in errors) / len(errors))


def average_bits(errors: Sequence[LayerError]) -> float:
    """Bits per weight, over all layers."""
    weights = [one.shape[0] * one.shape[1] for one in errors]
    return sum(one.bits * count for one, count in zip(errors, weights, strict=True)) / sum(weights)


def write_errors(errors: Sequence[LayerError], path: Path) -> None:
    """Every layer: JSON, or Markdown where the name ends in .md."""
    text = (error_table(errors, every=True) if path.suffix == ".md" else
            json.dumps([asdict(one) for one in errors], indent=1))
    with replacing(path) as beside:
        beside.write_text(text + "\n", encoding="utf-8")
