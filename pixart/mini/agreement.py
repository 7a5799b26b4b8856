"""How well PixArt-mini's ControlNet is followed: edges found again in its images, beside what the judge reads."""
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..checkpoint import load_control
from ..control.control_image import ControlImage
from ..control.edges import canny
from ..model.controlnet import PixArtControlNet
from . import SHIPPED, Files
from .evaluate import KEPT, Instrument
from .images import CANNY
from .measure.batches import BenchImages, each_pair, to_bytes
from .measure.bench import Bench
from .measure.methods import LCM_METHOD, TEACHER_METHOD, Sampled
from .measure.prompts import PromptGroup, Prompts
from .measure.results import Row
from .measure.tables import markdown

logger = logging.getLogger(__name__)

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Followed:
    """One row of the table: a method at one strength of control."""

    method: str
    control: str
    strength: float
    f1: float                   # edges of the images against their control maps, within one pixel
    row: Row


@dataclass(frozen=True)
class Steered:
    """A method whose images follow the edges of the real image of each prompt."""

    base: Sampled
    network: PixArtControlNet
    maps: BenchImages         # black and white, of all prompts of the bench or of more
    strength: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.base.name}, control {self.strength:g}"

    def generate(self, bench: Bench) -> BenchImages:
        def follow(group: PromptGroup) -> ControlImage:
            maps = self.maps.rows(group.members).to(bench.device).float() / 255
            with torch.inference_mode():
                return ControlImage(maps, self.strength, latent=bench.vae.encode(maps))
        return self.base.generate(bench, self.network, follow) if self.strength else self.base.generate(bench)


def edges(images: Tensor) -> Tensor:
    """(B, 3, H, W) in 0..1 -> (B, 1, H, W): the maps that the ControlNet was trained on."""
    return canny(images, CANNY["low"], CANNY["high"])


def bench_edges(images: BenchImages, batch: int) -> BenchImages:
    """Their edges, white on black."""
    parts = [torch.cat([to_bytes(edges(some.float() / 255)).expand(-1, 3, -1, -1) for some in part.split(batch)])
             for part in images.parts]
    return BenchImages(tuple(parts))


def edge_f1(found: Tensor, wanted: Tensor, within: int = 1) -> Tensor:
    """Harmonic mean of how much of `found` lies at most `within` pixels from `wanted`, and the other way round.

    Both (B, 1, H, W), 0 or 1, -> (B,). Two empty maps agree fully, one empty one not at all.
    """
    side = 2 * within + 1
    near_wanted, near_found = (F.max_pool2d(edge, side, 1, within) for edge in (wanted, found))
    precision = (found * near_wanted).sum((1, 2, 3)) / found.sum((1, 2, 3)).clamp(min=1)
    recall = (wanted * near_found).sum((1, 2, 3)) / wanted.sum((1, 2, 3)).clamp(min=1)
    both_empty = ~found.flatten(1).any(1) & ~wanted.flatten(1).any(1)
    return torch.where(both_empty, 1.0, 2 * precision * recall / (precision + recall).clamp(min=1e-12))


def agreement(images: BenchImages, maps: BenchImages, batch: int) -> Tensor:
    """Edge F1 of every prompt, (n,)."""
    return each_pair(images, maps, batch, "cpu", lambda found, wanted: edge_f1(edges(found), wanted[:, :1]))


class ControlBench:
    """The instrument, and the edge maps of the real images that all measurements follow."""

    def __init__(self, count: int = 300, seed: int = 7, files: Files = SHIPPED, device: str = "cpu", batch: int = 100,
                 judge: str = "b") -> None:
        self.bench = Bench.open(files, count, seed, device=device, batch=batch)
        self.instrument = Instrument(self.bench, judge)
        self.maps = bench_edges(self.instrument.real, batch)

    def measure(self, method: Sampled, title: str, network: PixArtControlNet, strength: float,
                ) -> tuple[Followed, BenchImages]:
        """One row, and its images."""
        row, images = self.instrument.measure(Steered(method, network.to(self.bench.device), self.maps, strength))
        f1 = agreement(images, self.maps, self.bench.batch).mean().item()
        logger.info("%s, %s, strength %.2f: edge F1 %.3f", method.name, title, strength, f1)
        return Followed(method.name, title, strength, f1, row), images

    def ceiling(self) -> Followed:
        """The real images through the autoencoder and back: no ControlNet can be followed more closely."""
        def there_and_back(some: Tensor) -> Tensor:
            return self.bench.decode(self.bench.vae.encode(some))
        parts = []
        with torch.inference_mode():
            for part in self.instrument.real.parts:
                some = BenchImages((part,)).batches(self.bench.batch, self.bench.device)
                parts.append(torch.cat([there_and_back(batch) for batch in some]).cpu())
        images = BenchImages(tuple(parts))
        f1 = agreement(images, self.maps, self.bench.batch).mean().item()
        return Followed("autoencoder alone", "none", 0.0, f1, self.instrument.row("autoencoder alone", images))


def evaluate_control(count: int = 300, seed: int = 7, files: Files = SHIPPED, control: Path | None = None,
                     device: str = "cpu", batch: int = 100, judge: str = "b",
                     ) -> tuple[list[Followed], dict[str, BenchImages], Prompts]:
    """Strengths of the LCM student, the teacher with and without control, the ceiling; rows, images, prompts."""
    network = load_control(control or files.control, torch.float32)
    bench = ControlBench(count, seed, files, device, batch, judge)
    rows = [bench.ceiling()]
    images = {"real": bench.instrument.real.first(KEPT), "control": bench.maps.first(KEPT)}
    for method, strengths in ((LCM_METHOD, STRENGTHS), (TEACHER_METHOD, (0.0, 1.0))):
        for strength in strengths:
            row, generated = bench.measure(method, "shipped", network, strength)
            rows.append(row)
            images[f"{method.name.split(',')[0]} {strength:g}"] = generated.first(KEPT)
    return rows, images, bench.bench.prompts


def agreement_table(rows: Sequence[Followed]) -> str:
    """Markdown; shares in per cent."""
    titles = ["", "control", "strength", "edge F1 (1 px)", "all attributes", "shape", "colour", "FID (judge)",
              "images"]
    cells = []
    for row in rows:
        share = {name: f"{100 * row.row.accuracy[name]:.1f}" for name in ("all", "shape", "colour")}
        cells.append([row.method, row.control if row.strength else "none", f"{row.strength:g}", f"{100 * row.f1:.1f}",
                      *share.values(), f"{row.row.fid:.2f}", str(len(row.row.answers))])
    return markdown(titles, cells)
