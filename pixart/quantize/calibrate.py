"""Calibration data, to which rounding is fitted: the inputs of a transformer's first block during sampling."""
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..generation.pipeline import Pipeline
from ..generation.request import Request
from ..model.block import PixArtBlock
from ..model.policy import Lane, Pass, Policy, Run
from ..model.transformer import PixArtTransformer
from ..progress import Progress
from ..sampling.samplers import SAMPLERS
from ..text.encoded import Encoded, join_encoded
from ..weights.errors import CheckpointError
from ..weights.locate import Kind
from ..weights.reader import open_weights
from ..weights.safetensors_file import write_tensors
from ..weights.values import check_finite, check_floating

AT_ONCE = 16                # rows that go through a block together, and images that are sampled together
CALIBRATION_FILE = Kind("calibration data of this program")


@dataclass(frozen=True)
class Inputs:
    """Rows of passes: tokens (R, N, D), text (R, L, D), mask (R, L) bool, modulation (R, 6, D), all of one grid."""

    tokens: Tensor
    text: Tensor
    mask: Tensor
    modulation: Tensor
    grid: tuple[int, int]

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, chosen: Tensor | slice) -> "Inputs":
        return Inputs(self.tokens[chosen], self.text[chosen], self.mask[chosen], self.modulation[chosen], self.grid)

    def through(self, block: PixArtBlock) -> Tensor:
        """The output of a block for all rows, (R, N, D), on the CPU."""
        device = block.attn.proj.weight.device
        with torch.no_grad():
            return torch.cat([self.rows(slice(at, at + AT_ONCE)).into(block, device).cpu()
                              for at in range(0, len(self), AT_ONCE)])

    def into(self, block: Callable[..., Tensor], device: torch.device) -> Tensor:
        """The rows through a block, (R, N, D), on `device`."""
        return block(self.tokens.to(device), self.text.to(device), self.modulation.to(device), self.grid,
                     self.mask.to(device))


@dataclass
class Recorder(Policy):
    """Keeps what enters the stack for chosen rows: index of the step, image, whether it is of the negative prompt."""

    chosen: set[tuple[int, int, bool]]
    offset: int = 0                                     # number of the first image of the sampling
    found: list[Inputs] = field(default_factory=list)

    def stack(self, p: Pass, go: Run) -> Tensor:
        step = p.known_step()
        rows = torch.tensor([row for row, lane in enumerate(step.lanes) if self.wants(step.index, lane)],
                            dtype=torch.long)
        if len(rows):
            every = Inputs(p.x.cpu(), p.text.cpu(), real_tokens(p), p.modulation.cpu(), p.grid)
            self.found.append(every.rows(rows))
        return go(p)

    def wants(self, step: int, lane: Hashable) -> bool:
        return (isinstance(lane, Lane) and isinstance(lane.image, int)
                and (step, lane.image + self.offset, lane.negative) in self.chosen)


def real_tokens(p: Pass) -> Tensor:
    """(B, L) bool on the CPU, True for tokens that are not padding, from either form of the pass's mask."""
    if p.mask is None:
        return torch.ones(p.text.shape[:2], dtype=torch.bool)
    return (p.mask if p.mask.dtype == torch.bool else p.mask.flatten(1) == 0).cpu()


def record(model: PixArtTransformer, request: Request, captions: Encoded, null: Encoded, count: int,
           told: Progress | None = None) -> Inputs:
    """`count` rows out of the passes of a real sampling, chosen at random by the request's seed: any image, step,
    and, with guidance, prompt or negative prompt. ValueError for more rows than there are."""
    images, kinds = len(request.prompts), (True, False) if request.guided else (False,)
    steps = len(SAMPLERS[request.sampler].times(request.steps, request.rule))
    every = [(step, image, negative) for image in range(images) for step in range(steps) for negative in kinds]
    if count > len(every):
        raise ValueError(f"{count} passes asked for, {images} prompts in {steps} steps give {len(every)}; give more "
                         "prompts")
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(request.seed))[:count].tolist()
    recorder, pipe = Recorder({every[i] for i in order}), Pipeline.of(model)
    for first in range(0, images, AT_ONCE):
        numbers = range(first, min(first + AT_ONCE, images))
        part = replace(request, prompts=tuple(request.prompts[i] for i in numbers), seed=request.seed + first)
        recorder.offset = first
        pipe.sample(part, join_encoded([captions.one(i) for i in numbers]), null, policies=[recorder], batch=AT_ONCE)
        if told:
            told("generating calibration images", numbers.stop, images)
    return together(recorder.found)


def together(parts: Sequence[Inputs]) -> Inputs:
    """All rows in one, texts padded to the longest."""
    longest = max(part.text.shape[1] for part in parts)
    texts = [F.pad(part.text, (0, 0, 0, longest - part.text.shape[1])) for part in parts]
    masks = [F.pad(part.mask, (0, longest - part.mask.shape[1])) for part in parts]
    return Inputs(torch.cat([part.tokens for part in parts]), torch.cat(texts), torch.cat(masks),
                  torch.cat([part.modulation for part in parts]), parts[0].grid)


def save_inputs(path: Path, inputs: Inputs) -> None:
    tensors = {"tokens": inputs.tokens, "text": inputs.text, "mask": inputs.mask, "modulation": inputs.modulation,
               "grid": torch.tensor(inputs.grid)}
    write_tensors(path, tensors)


def load_inputs(path: Path) -> Inputs:
    """What `save_inputs` wrote. CheckpointError for anything else."""
    tensors = open_weights(path, CALIBRATION_FILE).tensors
    lacking = {"tokens", "text", "mask", "modulation", "grid"} - tensors.keys()
    if lacking:
        raise CheckpointError(path, f"calibration data without {min(lacking)}", CALIBRATION_FILE.expected,
                              "Delete the file.")
    for name in ("tokens", "text", "modulation"):
        check_floating(name, tensors[name], path, CALIBRATION_FILE.expected)
        check_finite(name, tensors[name], path, CALIBRATION_FILE.expected)
    (rows, tokens, _), grid = [*tensors["tokens"].shape, 0, 0, 0][:3], tensors["grid"].flatten().tolist()
    shapes = {name: tuple(tensors[name].shape) for name in ("text", "mask", "modulation")}
    fits = (tensors["tokens"].ndim == 3 and len(grid) == 2 and grid[0] * grid[1] == tokens
            and all(len(shape) > 1 and shape[0] == rows for shape in shapes.values())
            and shapes["text"][:2] == shapes["mask"] and tensors["mask"].dtype == torch.bool)
    if not fits:
        raise CheckpointError(path, f"calibration data whose tensors do not fit each other: tokens "
                              f"{tuple(tensors['tokens'].shape)}, {shapes}, grid {grid[:4]}", CALIBRATION_FILE.expected,
                              "Delete the file.")
    height, width = map(int, grid)
    return Inputs(tensors["tokens"], tensors["text"], tensors["mask"], tensors["modulation"], (height, width))
