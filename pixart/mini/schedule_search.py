"""What a schedule is worth on PixArt-mini: what judge A reads of the pictures, over counted work."""
from collections.abc import Callable

import torch
from torch import Tensor

from ..accelerate.branches import ReuseBranches
from ..accelerate.plan import SamplingJob
from ..accelerate.schedule import BranchSchedule
from ..pipeline import Pipeline
from . import SHIPPED, Files
from .judge import load_judge
from .measure.batches import BenchPictures, measure_each
from .measure.bench import Bench
from .measure.methods import TEACHER_METHOD
from .scenes import labels

SEARCH_SEED = 1000  # of the scenes; those of measurements have another
SEARCH_STEPS, SEARCH_GUIDANCE = TEACHER_METHOD.steps, TEACHER_METHOD.guidance


class Fitness:
    """Mean negative log-likelihood of all stated facts by judge A, over some scenes with some seeds each."""

    def __init__(self, scenes: int, seeds: int, files: Files = SHIPPED, device: str = "cpu") -> None:
        self.bench = Bench.open(files, scenes, SEARCH_SEED, device=device)
        self.judge = load_judge(files.judge_a).to(self.bench.device)
        self.model, self.seeds = TEACHER_METHOD.model(files, self.bench.device), seeds
        self.wanted = torch.tensor([labels(scene) for scene in self.bench.prompts.scenes])
        self.config = self.model.config
        side, text = self.config.resolution, self.bench.captions.mask.shape[1]
        self.job = SamplingJob.of(self.config, SEARCH_STEPS, side, side, text, guided=True)
        self.about = f"PixArt-mini, {scenes} scenes, {seeds} seeds, {SEARCH_STEPS} steps, guidance {SEARCH_GUIDANCE}"

    def loss(self, schedule: BranchSchedule) -> float:
        """The lower the better."""
        return sum(self.of_run(self.bench.again(1 + run), schedule) for run in range(self.seeds)) / self.seeds

    def work(self, schedule: BranchSchedule) -> float:
        """GMACs of a picture."""
        return self.job.costs().of(schedule, self.job.rows()) / 1e9

    def of_run(self, bench: Bench, schedule: BranchSchedule) -> float:
        pipe = Pipeline.of(self.model)
        parts: dict[tuple[int, int], list[Tensor]] = {}
        for group in bench.prompts.groups(bench.batch):
            request = bench.request(group, TEACHER_METHOD.sampler, SEARCH_STEPS, SEARCH_GUIDANCE)
            latents = pipe.sample(request, bench.text(group), bench.null, policies=[ReuseBranches(schedule)],
                                  batch=bench.batch)
            parts.setdefault((group.height, group.width), []).append(bench.decode(latents))
        drawn = BenchPictures(tuple(torch.cat(part) for part in parts.values()))
        likelihoods = measure_each(drawn, bench.batch, bench.device, self.reading())
        stated = self.wanted >= 0
        at = self.wanted.clamp(min=0)
        logs = torch.stack([likelihoods[:, start:end].gather(1, at[:, [column]])[:, 0]
                            for column, (start, end) in enumerate(self.columns)], 1)
        return -(logs * stated).sum().item() / stated.sum().item()

    def reading(self) -> Callable[[Tensor], Tensor]:
        """Pictures -> log-likelihoods of all answers, side by side; which columns are whose is kept in `columns`."""
        def read(some: Tensor) -> Tensor:
            with torch.inference_mode():
                answers = [logits.log_softmax(1) for logits in self.judge(some)]
            ends = torch.tensor([answer.shape[1] for answer in answers]).cumsum(0).tolist()
            self.columns = list(zip([0, *ends[:-1]], ends))
            return torch.cat(answers, 1)
        return read
