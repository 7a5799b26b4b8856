"""Captions without images, one a line of a .txt file, to a folder for the trainers that need no images.

Its shards are those of `pixart.prepare` with latents of no channels, (n, 0, h, w): they say the image size alone.
"""
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..text.cleaning import clean_caption
from .captions import Captions
from .families import Family
from .items import digest_of
from .shards import Shard, next_shard, shard_paths, stacked_features, write_shard

if TYPE_CHECKING:
    from .run import PreparationJob

Prompt = tuple[str, str]         # its key, and the text as it is to be tokenised


def are_prompts(sources: Sequence[Path]) -> bool:
    """Whether all sources are lists of captions. ValueError where only some are."""
    lists = [source for source in sources if source.is_file() and source.suffix.lower() == ".txt"]
    if lists and len(lists) < len(sources):
        raise ValueError(f"captions without images ({lists[0].name}) cannot be prepared together with images; "
                         "prepare each kind into a folder of its own")
    return bool(lists)


def prompts_of_sources(sources: Sequence[Path], family: Family) -> Iterator[Prompt]:
    """Every line that says something, cleaned as the family's captions are; keys are "file, line n"."""
    for source in sources:
        try:
            lines = source.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{source} is not UTF-8 text ({error}); save it as UTF-8") from error
        for number, line in enumerate(lines, 1):
            text = clean_caption(line) if family.clean else line.strip()
            if text:
                yield f"{source.name}, line {number}", text


def waiting(job: "PreparationJob") -> list[Prompt]:
    """Captions that are not in the folder yet, compared by their text and how often it occurs, not by their line.

    Older files only name the lines. ValueError where the sources hold no caption at all.
    """
    shards = [Shard(path) for path in shard_paths(job.out)]
    lines = {key for shard in shards if not shard.marks for key in shard.keys}
    left = Counter(mark for shard in shards for mark in shard.marks)
    prompts = list(prompts_of_sources(job.sources, job.family))
    if not prompts:
        raise ValueError("the sources hold no caption; write one a line")
    new = []
    for key, words in prompts:
        mark = digest_of(words)
        if left[mark] > 0:
            left[mark] -= 1
        elif key not in lines:
            new.append((key, words))
    return new


def write_prompts(job: "PreparationJob", prompts: Sequence[Prompt], captions: Captions, metadata: dict[str, str],
                  progress: Callable[[int, int], None]) -> int:
    """Write the features of encoded captions, `job.shard` a file, for square images; returns their number."""
    side = job.resolution // 8
    for at in range(0, len(prompts), job.shard):
        part = prompts[at:at + job.shard]
        tensors = told(job.resolution, [captions.features(text) for _, text in part])
        write_shard(next_shard(job.out, (side, side)), tensors, metadata, [key for key, _ in part],
                    [digest_of(text) for _, text in part])
        progress(at + len(part), len(prompts))
    return len(prompts)


def told(resolution: int, features: Sequence[Tensor]) -> dict[str, Tensor]:
    """The tensors of a shard of captions, features (tokens, width) fp16 each."""
    count, side = len(features), resolution // 8
    return {"latents": torch.zeros(count, 0, side, side, dtype=torch.float16), **stacked_features(features),
            "size": torch.full((count, 2), float(resolution)), "aspect": torch.ones(count)}
