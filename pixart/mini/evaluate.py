"""How good PixArt-mini is: attributes read by the judge, Frechet distance in the judge's features, a contact sheet.

Everything runs through the parts that users run: text encoder, samplers and autoencoder of the pipeline.
"""
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..checkpoint import load
from ..checkpoint.merged import with_loras
from ..model.transformer import PixArtTransformer
from ..pipeline import Control, Request, sample
from ..text.encoded import Encoded, join
from ..text.t5 import T5Encoder
from ..vae import decode, load_vae
from . import SHIPPED, Files
from .grammar import ATTRIBUTES, Scene
from .judge import Judge, accuracy, load_judge, score
from .pictures import BUCKETS
from .prepare import held_out, picture_of

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Method:
    """One way of drawing: a weights file and how to sample from it."""

    name: str
    weights: str | Path              # "teacher" or "student" of PixArt-mini, or a file
    sampler: str
    steps: int
    guidance: float = 1.0
    lora: Path | None = None         # on top of the weights

    def model(self, files: Files) -> PixArtTransformer:
        """In float32, the LoRA merged. Raises what reading the files raises."""
        path = self.weights if isinstance(self.weights, Path) else getattr(files, self.weights)
        return with_loras(load(path, dtype=torch.float32), [(self.lora, 1.0)] if self.lora else [])


METHODS = (
    Method("teacher, 20 steps, guidance 2.5", "teacher", "dpm", 20, 2.5),
    Method("LCM, 4 steps", "student", "lcm", 4),
    Method("LCM, 2 steps", "student", "lcm", 2),
    Method("LCM, 1 step", "student", "lcm", 1),
)


def few_step(students: Sequence[Path], loras: Sequence[Path], steps: Sequence[int] = (4, 2, 1)) -> list[Method]:
    """Other students than the shipped one, and LCM-LoRAs on the teacher, each with these numbers of steps."""
    named = [(path.stem, path, None) for path in students]
    named += [(f"teacher + {path.stem}", "teacher", path) for path in loras]
    return [Method(f"{name}, {count} step{'s' * (count > 1)}", weights, "lcm", count, lora=lora)
            for name, weights, lora in named for count in steps]


@dataclass(frozen=True)
class Result:
    """What was measured of one set of pictures."""

    name: str
    accuracy: dict[str, float]       # by attribute, and "all" and "pictures"
    distance: float                  # Frechet, in the judge's features, to real pictures of the same scenes
    count: int
    seconds: float                   # per picture, 0 where nothing was drawn


@dataclass(frozen=True)
class Prompts:
    """The fixed held-out prompts, sorted by picture size: prompt i has size BUCKETS[i % len(BUCKETS)]."""

    scenes: list[Scene]
    captions: list[str]
    seed: int

    @classmethod
    def held_out(cls, count: int, seed: int) -> "Prompts":
        examples = held_out(count, seed)
        return cls([scene for scene, _ in examples], [text for _, text in examples], seed)

    def groups(self, batch: int) -> Iterable[tuple[tuple[int, int], list[int]]]:
        """(height, width) and at most `batch` prompt numbers of that size."""
        for number, size in enumerate(BUCKETS):
            members = range(number, len(self.scenes), len(BUCKETS))
            for at in range(0, len(members), batch):
                yield size, list(members[at:at + batch])


def draw(method: Method, model: PixArtTransformer, vae: nn.Module, prompts: Prompts, features: list[Encoded],
         null: Encoded, batch: int = 50, follow: Callable[[list[int]], Control] | None = None,
         ) -> tuple[list[Tensor], float]:
    """Pictures (3, H, W) in 0..1 in the order of the prompts, and seconds per picture.

    Seeds count up from the number of a group's first prompt. follow: gives the control of the prompts of these numbers.
    """
    pictures: list[Tensor] = [torch.empty(0)] * len(prompts.scenes)
    started = time.perf_counter()
    for (height, width), members in prompts.groups(batch):
        request = Request(tuple(prompts.captions[i] for i in members), height=height, width=width, seed=members[0],
                          sampler=method.sampler, steps=method.steps, guidance=method.guidance)
        latents = sample(model, request, join([features[i] for i in members]), null,
                         control=follow and follow(members))
        for i, picture in zip(members, decode(vae, latents, model.config.latent_scale, batch)):
            pictures[i] = picture
    return pictures, (time.perf_counter() - started) / len(pictures)


def by_size(pictures: Sequence[Tensor], batch: int = 100) -> Iterable[tuple[list[int], Tensor]]:
    """Pictures of one size at a time: their numbers and a batch (B, 3, H, W)."""
    sizes: dict[tuple[int, ...], list[int]] = {}
    for i, picture in enumerate(pictures):
        sizes.setdefault(tuple(picture.shape), []).append(i)
    for members in sizes.values():
        for at in range(0, len(members), batch):
            part = members[at:at + batch]
            yield part, torch.stack([pictures[i] for i in part])


@torch.no_grad()
def judged(judge: Judge, scenes: Sequence[Scene], pictures: Sequence[Tensor]) -> tuple[dict[str, float], Tensor]:
    """Accuracy by attribute, and the judge's features (n, F)."""
    scores: list[dict[str, bool]] = []
    features = []
    for members, stack in by_size(pictures):
        scores += [score(scenes[i], read) for i, read in zip(members, judge.attributes(stack))]
        features.append(judge.features(stack).double())
    return accuracy(scores), torch.cat(features)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|mean a - mean b|^2 + tr(A + B - 2 sqrt(A B)) of two sets of features (n, F), float64 (Heusel et al. 2017)."""
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    root = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt().sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * root).item()


def evaluate(count: int = 1000, seed: int = 7, files: Files = SHIPPED, methods: Sequence[Method] = METHODS,
             ) -> tuple[list[Result], dict[str, list[Tensor]], Prompts]:
    """Measure all methods on `count` held-out prompts; returns results, pictures by name, and the prompts."""
    prompts, judge = Prompts.held_out(count, seed), load_judge(files.judge)
    sizes = [BUCKETS[i % len(BUCKETS)] for i in range(count)]
    real = [picture_of(i, seed, "held-out", size).float() / 255 for i, size in enumerate(sizes)]
    other = [picture_of(i, seed + 1, "held-out", size).float() / 255 for i, size in enumerate(sizes)]
    right, reference = judged(judge, prompts.scenes, real)
    floor = frechet_distance(judged(judge, prompts.scenes, other)[1], reference)
    results = [Result("real pictures", right, floor, count, 0.0)]
    vae, pictures = load_vae(files.vae), {"real": real}
    encoder = T5Encoder(files.t5, bits=16)
    encoded = encoder.encode([*prompts.captions, ""], max_tokens=40, clean=True, batch=100)
    features, null = [encoded.one(i) for i in range(count)], encoded.one(count)
    for method in methods:
        model = method.model(files)
        drawn, seconds = draw(method, model, vae, prompts, features, null)
        right, seen = judged(judge, prompts.scenes, drawn)
        results.append(Result(method.name, right, frechet_distance(seen, reference), count, seconds))
        pictures[method.name] = drawn
        logger.info("%s: %.3f of attributes, distance %.2f", method.name, right["all"], results[-1].distance)
    return results, pictures, prompts


def table(results: Sequence[Result]) -> str:
    """The results as a Markdown table, shares in per cent."""
    names = ["all", "pictures", *ATTRIBUTES]
    titles = ["all attributes", "whole pictures", *ATTRIBUTES]
    lines = ["| | " + " | ".join(titles) + " | FID (judge) | pictures |", "|---" * (len(names) + 3) + "|"]
    for result in results:
        shares = [f"{100 * result.accuracy[name]:.1f}" if name in result.accuracy else "" for name in names]
        lines.append(f"| {result.name} | " + " | ".join(shares) + f" | {result.distance:.2f} | {result.count} |")
    return "\n".join(lines)


def contact_sheet(pictures: dict[str, list[Tensor]], prompts: Prompts, rows: Sequence[int], cell: int = 160,
                  ) -> "Image":
    """One row per prompt number in `rows`, one column per way of drawing, captions above each row."""
    from PIL import Image, ImageDraw
    names = list(pictures)
    sheet = Image.new("RGB", (len(names) * cell, 24 + len(rows) * (cell + 18)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, name in enumerate(names):
        pen.text((column * cell + 4, 6), name.split(", guidance")[0], fill="black")
        for row, number in enumerate(rows):
            top = 24 + row * (cell + 18)
            array = (pictures[name][number] * 255).round().byte().permute(1, 2, 0).numpy()
            picture = Image.fromarray(array)
            left = column * cell + (cell - picture.width) // 2
            sheet.paste(picture, (left, top + 16 + (cell - picture.height) // 2))
            if column == 0:
                pen.text((4, top + 2), prompts.captions[number], fill="black")
    return sheet

