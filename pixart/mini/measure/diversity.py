"""How different the pictures of one sentence are: few-step training and rewards can make them all alike."""
from itertools import combinations

import torch
from torch import Tensor

from .batches import BenchPictures, each_pair
from .bench import Bench
from .judges import PictureJudge
from .methods import DrawingMethod
from .similarity import judge_lpips

RUNS = 4            # pictures of each sentence


def diversity(judge: PictureJudge, method: DrawingMethod, bench: Bench, drawn: BenchPictures) -> Tensor:
    """(n,) float64: mean judge-LPIPS of all pairs of `RUNS` pictures of a sentence that differ in their noise.

    drawn: the pictures of run 0, by the same method, of the sentences of `bench`.
    """
    runs = [drawn, *(method.draw(bench.again(run)) for run in range(1, RUNS))]
    distances = [each_pair(a, b, bench.batch, bench.device, lambda x, y: judge_lpips(judge, x, y).clone())
                 for a, b in combinations(runs, 2)]
    return torch.stack(distances).double().mean(0)
