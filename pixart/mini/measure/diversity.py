"""How different the images of one prompt are: few-step training and rewards can reduce it."""
from itertools import combinations

import torch
from torch import Tensor

from .batches import BenchImages, each_pair
from .bench import Bench
from .judges import ImageJudge
from .methods import GenerationMethod
from .similarity import judge_lpips

RUNS = 4            # images of each prompt


def diversity(judge: ImageJudge, method: GenerationMethod, bench: Bench, images: BenchImages) -> Tensor:
    """(n,) float64: mean judge-LPIPS of all pairs of `RUNS` images of a prompt that differ in their noise.

    images: those of run 0, by the same method, of the prompts of `bench`.
    """
    runs = [images, *(method.generate(bench.again(run)) for run in range(1, RUNS))]
    distances = [each_pair(a, b, bench.batch, bench.device, lambda x, y: judge_lpips(judge, x, y).clone())
                 for a, b in combinations(runs, 2)]
    return torch.stack(distances).double().mean(0)
