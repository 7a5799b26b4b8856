"""The rewards there are: what they are called, which files they need, and their published weights."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..mini import SHIPPED
from .protocol import WeightedSum


@dataclass(frozen=True)
class RewardKind:
    """One sort of reward."""

    name: str                # as it is chosen
    title: str               # for people
    file: str                # file or folder below a folder of rewards
    source: str              # where it is published
    weight: float            # in ReNO's sum; 1 where that does not have it
    open: Callable[[Path, Path | None], nn.Module]
    """open(path, folder of a tokenizer) -> the reward, on the CPU."""


def _clip(name: str, scaled: bool = True, whole: bool = False) -> Callable[[Path, Path | None], nn.Module]:
    def opened(path: Path, tokenizer: Path | None) -> nn.Module:
        from .clip import ClipReward
        return ClipReward.open(name, path, tokenizer, scaled, whole)
    return opened


def _judge(path: Path, tokenizer: Path | None) -> nn.Module:
    from .judge import JudgeReward
    return JudgeReward.open(path)


def _image_reward(path: Path, tokenizer: Path | None) -> nn.Module:
    from .image_reward import ImageReward
    return ImageReward.open(path, tokenizer)


# Weights: ReNO (Eyring et al. 2024), appendix and published code.
REWARDS: dict[str, RewardKind] = {kind.name: kind for kind in (
    RewardKind("judge", "judge A of PixArt-mini, for its sentences only", "judge-a.safetensors", "this repository", 1.0,
               _judge),
    RewardKind("clip", "CLIP ViT-H/14", "clip", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", 0.01, _clip("clip")),
    RewardKind("pickscore", "PickScore", "pickscore", "yuvalkirstain/PickScore_v1", 0.05, _clip("pickscore")),
    RewardKind("hpsv2", "Human Preference Score v2.1", "HPS_v2.1_compressed.pt", "xswu/HPSv2", 5.0,
               _clip("hpsv2", scaled=False, whole=True)),
    RewardKind("imagereward", "ImageReward", "imagereward", "zai-org/ImageReward, with vocab.txt of "
               "google-bert/bert-base-uncased", 1.0, _image_reward),
)}


@dataclass(frozen=True)
class RewardChoice:
    """A reward somebody wants: its weight in the sum, and where it lies, by default in the folder of rewards."""

    name: str
    weight: float | None = None
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> "RewardChoice":
        """NAME, NAME:WEIGHT, NAME=PATH or NAME=PATH:WEIGHT."""
        head, colon, number = text.rpartition(":")
        try:
            weight = float(number) if colon else None
        except ValueError:              # a path with a colon in it, as on Windows
            weight = None
        name, equals, path = (head if weight is not None else text).partition("=")
        return cls(kind_of(name).name, weight, Path(path).expanduser() if equals else None)


def kind_of(name: str) -> RewardKind:
    """Raises ValueError that names all of them."""
    if name not in REWARDS:
        raise ValueError(f"unknown reward {name!r}; use {', '.join(REWARDS)}")
    return REWARDS[name]


def choice_path(choice: RewardChoice, folder: Path | None) -> Path:
    """Where the weights of a choice lie. Raises FileNotFoundError with the exact name, its source and the folder."""
    kind = kind_of(choice.name)
    if choice.path is None and choice.name == "judge":
        return SHIPPED.judge_a
    if choice.path is None and folder is None:
        raise ValueError(f"where are the weights of {kind.title}? Name a folder of rewards that holds {kind.file}, or "
                         f"write {kind.name}=PATH ({kind.source} on Hugging Face)")
    path = choice.path if choice.path is not None else Path(str(folder)).expanduser() / kind.file
    if not path.exists():
        raise FileNotFoundError(f"{kind.title} is missing: put {kind.file} ({kind.source} on Hugging Face) there: "
                                f"{path}")
    return path


def open_rewards(choices: Sequence[RewardChoice], folder: str | Path | None = None, tokenizer: str | Path | None = None,
                 device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> WeightedSum:
    """The weighted sum of rewards from local files, checked for being there before any is read.

    folder: holds them under the names of `REWARDS`. tokenizer: folder for CLIP's vocab.json and merges.txt where none
    lies beside the weights. Raises ValueError, FileNotFoundError that name file and folder.
    """
    root, words = (None if given is None else Path(given) for given in (folder, tokenizer))
    places = [choice_path(choice, root) for choice in choices]
    parts = []
    for choice, place in zip(choices, places):
        kind = kind_of(choice.name)
        parts.append((kind.open(place, words).to(device, dtype),
                      kind.weight if choice.weight is None else choice.weight))
    return WeightedSum(parts)
