"""Very many scenes with their captions, as numbers: what images are rendered from while a training runs."""
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from os import cpu_count

import numpy as np
import torch
from torch import Tensor

from .grammar import caption
from .render import encode_scene
from .scenes import draw_lots, labels

_PART = 5_000                  # rows that one process draws at a time; part k is the same whoever draws it


@dataclass(frozen=True)
class Catalogue:
    """N scenes: codes (N, CODE) int8 as in `encode_scene`, answers (N, attributes) int8 as in `labels`, and the
    tokens (N, L) int16 of one caption each, 0 behind its end."""

    codes: Tensor
    answers: Tensor
    tokens: Tensor

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def things(self) -> int:
        """Most things in one of the scenes."""
        return int(self.codes[:, 1].max())

    def to(self, device: torch.device | str) -> "Catalogue":
        return Catalogue(self.codes.to(device), self.answers.to(device), self.tokens.to(device))


@dataclass(frozen=True)
class SceneWish:
    """Which scenes: of a split, a mix of both (`held_out` is the share of the other), crowded or with `two` things."""

    seed: int
    crowded: bool = False
    two: float = 0.2           # share of scenes with two things among the ordinary ones
    held_out: float = 0.0      # share of scenes of the held-out split; only judges and text encoders may see them
    unknown: float = 0.0       # share of captions with an unknown word somewhere, as people use words of their own


def build_catalogue(wish: SceneWish, count: int, words: dict[str, int], processes: int | None = None) -> Catalogue:
    """`count` scenes of the endless row that `wish` names; `words` are the numbers of the tokenizer's words.

    The result does not depend on `processes`, by default one for each core when there is much to draw.
    """
    parts = [(part, min(_PART, count - part * _PART)) for part in range(-(-count // _PART))]
    if processes is None:
        processes = min(cpu_count() or 1, len(parts) // 4)
    work = partial(_rows, wish, words)
    if processes > 1:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            rows = list(pool.map(work, parts))
    else:
        rows = list(map(work, parts))
    tokens = np.zeros((count, max(part.shape[1] for _, _, part in rows)), np.int16)
    for number, (_, _, part) in enumerate(rows):
        tokens[number * _PART:number * _PART + len(part), :part.shape[1]] = part
    codes, answers = (torch.from_numpy(np.concatenate([row[k] for row in rows])) for k in (0, 1))
    return Catalogue(codes, answers, torch.from_numpy(tokens))


def _rows(wish: SceneWish, words: dict[str, int], part: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, answers and padded tokens of a part (number, rows)."""
    number, count = part
    rng = random.Random(f"catalogue {wish.seed} {wish.crowded} {number}")
    codes, answers, captions = [], [], []
    for _ in range(count):
        split = "held-out" if rng.random() < wish.held_out else "train"
        scene = draw_lots(rng, split, wish.crowded, wish.two)
        codes.append(encode_scene(scene))
        answers.append(labels(scene))
        text = caption(scene, rng).split()
        if rng.random() < wish.unknown:
            text.insert(rng.randint(0, len(text)), "\N{REPLACEMENT CHARACTER}")
        captions.append(numbers(" ".join(text), words))
    tokens = np.zeros((count, max(map(len, captions))), np.int16)
    for row, given in zip(tokens, captions):
        row[:len(given)] = given
    return np.array(codes, np.int8), np.array(answers, np.int16).clip(-1).astype(np.int8), tokens


def numbers(text: str, words: dict[str, int]) -> list[int]:
    """What the tokenizer makes of a caption of the grammar, `</s>` at the end, without its overhead."""
    unknown, end = words["<unk>"], words["</s>"]
    return [words.get(word, unknown) for word in text.replace(".", " .").replace(",", " ,").split()] + [end]
