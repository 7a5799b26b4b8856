"""Judge A of PixArt-mini as a reward: how likely the image shows all that a sentence of the grammar states."""
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..mini import SHIPPED
from ..mini.judge import Judge, load_judge
from ..mini.reading import answers_of
from ..mini.scenes import ATTRIBUTES
from .embedding import EmbeddingReward


class JudgeReward(EmbeddingReward):
    """Log-likelihood of all stated facts, 0 at best.

    It is of the CLIP type: c marks the stated ones of all possible answers, v holds the log-probability of each.
    """

    name = "judge"

    def __init__(self, network: Judge) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    @classmethod
    def open(cls, path: str | Path = SHIPPED.judge_a) -> "JudgeReward":
        """Judge A, which may teach; judge B only measures. Raises ValueError, FileNotFoundError."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"the judge of PixArt-mini is missing, {SHIPPED.judge_a.name}: {path}")
        return cls(load_judge(path))

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """ValueError for prompts that are not sentences of the grammar."""
        stated = [answers_of(prompt) for prompt in prompts]
        rows = torch.zeros(len(prompts), sum(map(len, ATTRIBUTES.values())))
        first = 0
        for column, answers in enumerate(ATTRIBUTES.values()):
            for row, found in zip(rows, stated):
                if found[column] >= 0:
                    row[first + found[column]] = 1
            first += len(answers)
        return rows.to(self.network.head.weight.device)

    def looks(self, images: Tensor) -> Tensor:
        device = self.network.head.weight.device
        return torch.cat([logits.log_softmax(1) for logits in self.network(images.float().to(device))], 1)
