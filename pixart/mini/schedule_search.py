"""What a schedule is worth on PixArt-mini: what judge A reads of the images, over counted work."""
import torch
from torch import Tensor

from ..accelerate.branches import ReuseBranches
from ..accelerate.plan import SamplingJob
from ..accelerate.schedule import BranchSchedule
from . import SHIPPED, Files
from .judge import load_judge
from .measure.batches import measure_each
from .measure.bench import Bench
from .measure.methods import TEACHER_METHOD
from .scenes import ATTRIBUTES, labels

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
        """GMACs of an image."""
        return self.job.costs().of(schedule, self.job.rows()) / 1e9

    def of_run(self, bench: Bench, schedule: BranchSchedule) -> float:
        images = TEACHER_METHOD.generate_with(self.model, [ReuseBranches(schedule)], bench)
        likelihoods = measure_each(images, bench.batch, bench.device, self.read)
        stated = self.wanted >= 0
        of_each = likelihoods.split([len(answers) for answers in ATTRIBUTES.values()], 1)
        logs = torch.cat([answers.gather(1, wanted[:, None])
                          for answers, wanted in zip(of_each, self.wanted.clamp(min=0).T, strict=True)], 1)
        return -(logs * stated).sum().item() / stated.sum().item()

    def read(self, some: Tensor) -> Tensor:
        """Images -> log-likelihoods of the answers of all `ATTRIBUTES`, side by side."""
        with torch.inference_mode():
            return torch.cat([logits.log_softmax(1) for logits in self.judge(some)], 1)
