"""How well PixArt-mini's ControlNet is followed: edges found again in its pictures, beside what the judge reads."""
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checkpoint import load_control
from ..control.edges import canny
from ..model.controlnet import PixArtControlNet
from ..model.transformer import PixArtTransformer
from ..pipeline import Control, Guide
from ..text.encoded import Encoded
from ..text.t5 import T5Encoder
from ..vae import encode, load_vae
from . import SHIPPED, Files
from .evaluate import Method, Prompts, Result, draw, frechet_distance, judged
from .judge import load_judge
from .pictures import BUCKETS, CANNY
from .prepare import picture_of

logger = logging.getLogger(__name__)

LCM = Method("LCM, 4 steps", "student", "lcm", 4)
TEACHER = Method("teacher, 20 steps, guidance 2.5", "teacher", "dpm", 20, 2.5)
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Followed:
    """One row of the table: a way of drawing, at one strength of control."""

    method: str
    control: str
    strength: float
    f1: float                   # edges of the pictures against their control maps, within one pixel
    result: Result


@dataclass(frozen=True)
class Pairs:
    """Held-out prompts with the real picture of each scene and its edge map: what is given and what should come out."""

    prompts: Prompts
    real: list[Tensor]          # (3, H, W) in 0..1
    maps: list[Tensor]          # (1, H, W), 0 or 1

    @classmethod
    def held_out(cls, count: int, seed: int) -> "Pairs":
        prompts = Prompts.held_out(count, seed)
        real = [picture_of(i, seed, "held-out", BUCKETS[i % len(BUCKETS)]).float() / 255 for i in range(count)]
        return cls(prompts, real, [edges(picture) for picture in real])


def edges(picture: Tensor) -> Tensor:
    """(3, H, W) in 0..1 -> (1, H, W): the map that the ControlNet was trained on."""
    return canny(picture[None], **CANNY)[0]


def edge_f1(found: Tensor, wanted: Tensor, within: int = 1) -> float:
    """Harmonic mean of how much of `found` lies at most `within` pixels from `wanted`, and the other way round.

    Both (1, H, W), 0 or 1. Two empty maps agree fully, one empty one not at all.
    """
    if not found.any() and not wanted.any():
        return 1.0
    if not found.any() or not wanted.any():
        return 0.0
    side = 2 * within + 1
    near_wanted, near_found = (F.max_pool2d(edge[None], side, 1, within)[0] for edge in (wanted, found))
    precision = ((found * near_wanted).sum() / found.sum()).item()
    recall = ((wanted * near_found).sum() / wanted.sum()).item()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


class Follower:
    """Hands the drawing loop the control of each of its batches."""

    def __init__(self, network: PixArtControlNet, pairs: Pairs, vae: nn.Module, scale: float, strength: float) -> None:
        self.network, self.pairs, self.vae, self.scale, self.strength = network, pairs, vae, scale, strength

    def __call__(self, members: Sequence[int]) -> Control:
        maps = torch.stack([self.pairs.maps[i] for i in members]).expand(-1, 3, -1, -1)
        return Control(self.network, Guide(maps, self.strength), encode(self.vae, maps, self.scale, batch=50)[0])


@dataclass(frozen=True)
class Bench:
    """Everything that all measurements share."""

    pairs: Pairs
    files: Files
    vae: nn.Module
    features: list[Encoded]
    null: Encoded

    @classmethod
    def of(cls, count: int, seed: int, files: Files) -> "Bench":
        pairs = Pairs.held_out(count, seed)
        encoded = T5Encoder(files.t5, bits=16).encode([*pairs.prompts.captions, ""], max_tokens=40, clean=True,
                                                      batch=100)
        return cls(pairs, files, load_vae(files.vae), [encoded.one(i) for i in range(count)], encoded.one(count))

    def measure(self, method: Method, model: PixArtTransformer, title: str, network: PixArtControlNet,
                strength: float) -> tuple[Followed, list[Tensor]]:
        """One row, and its pictures."""
        follow = Follower(network, self.pairs, self.vae, model.config.latent_scale, strength) if strength else None
        drawn, seconds = draw(method, model, self.vae, self.pairs.prompts, self.features, self.null, follow=follow)
        judge = load_judge(self.files.judge)
        right, seen = judged(judge, self.pairs.prompts.scenes, drawn)
        distance = frechet_distance(seen, judged(judge, self.pairs.prompts.scenes, self.pairs.real)[1])
        f1 = sum(edge_f1(edges(a), b) for a, b in zip(drawn, self.pairs.maps)) / len(drawn)
        row = Followed(method.name, title, strength, f1, Result(method.name, right, distance, len(drawn), seconds))
        logger.info("%s, %s, strength %.2f: F1 %.3f, attributes %.3f", method.name, title, strength, f1, right["all"])
        return row, drawn


def evaluate_control(count: int = 300, seed: int = 7, files: Files = SHIPPED, control: Path | None = None,
                     ) -> tuple[list[Followed], dict[str, list[Tensor]], Pairs]:
    """Strengths of the LCM student, and the teacher with and without control; rows, pictures, pairs."""
    bench, network = Bench.of(count, seed, files), load_control(control or files.control, torch.float32)
    rows, pictures = [], {"real": bench.pairs.real, "control": [m.expand(3, -1, -1) for m in bench.pairs.maps]}
    for method, strengths in ((LCM, STRENGTHS), (TEACHER, (0.0, 1.0))):
        model = method.model(bench.files)
        for strength in strengths:
            row, drawn = bench.measure(method, model, "shipped", network, strength)
            rows.append(row)
            pictures[f"{method.name.split(',')[0]} {strength:g}"] = drawn
    return rows, pictures, bench.pairs


def table(rows: Sequence[Followed]) -> str:
    """Markdown; shares in per cent."""
    lines = ["| | control | strength | edge F1 (1 px) | all attributes | shape | colour | FID (judge) | pictures |",
             "|---" * 9 + "|"]
    for row in rows:
        share = {name: f"{100 * row.result.accuracy[name]:.1f}" for name in ("all", "shape", "colour")}
        lines.append(f"| {row.method} | {row.control if row.strength else 'none'} | {row.strength:g} | "
                     f"{100 * row.f1:.1f} | {share['all']} | {share['shape']} | {share['colour']} | "
                     f"{row.result.distance:.2f} | {row.result.count} |")
    return "\n".join(lines)
