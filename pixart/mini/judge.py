"""Two small networks that read the attributes of an image: judge B measures what models make, judge A may teach them.

They differ in architecture, seed and training images, so that what is optimised against A can be measured by B.
"""
import json
import logging
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from ..weights.safetensors_file import write_tensors
from .images import BUCKETS, render_scene
from .measure.accuracy import Answers, most_likely
from .resume import ResumableTraining
from .scenery import Scenery
from .scenes import ATTRIBUTES, Scene, sample_scene

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Design:
    """What distinguishes one judge's network from another's."""

    widths: tuple[int, ...]        # channels after each halving of the image
    deeper: int                    # further convolutions at the last size
    pooled: int                    # side of the map that the features are read from
    features: int                  # width of the features for the Frechet distance
    norm: str                      # "batch" or "group"


DESIGNS = {"a": Design((32, 64, 96, 96), 2, 6, 192, "group"), "b": Design((24, 48, 96, 128), 1, 6, 192, "batch")}


class Judge(nn.Module):
    """Reads images (B, 3, H, W) in 0..1 of any bucket; one linear head per attribute."""

    def __init__(self, design: Design = DESIGNS["b"]) -> None:
        super().__init__()
        self.design = design
        last, act = design.widths[-1], nn.SiLU if design.norm == "group" else nn.ReLU
        widths = (5, *design.widths, *[last] * design.deeper)
        self.stages = nn.ModuleList(_stage(a, b, 2 if index < len(design.widths) else 1, design.norm)
                                    for index, (a, b) in enumerate(zip(widths, widths[1:])))
        self.summary = nn.Sequential(nn.AdaptiveAvgPool2d(design.pooled), nn.Flatten(),
                                     nn.Linear(last * design.pooled ** 2, design.features),
                                     _norm(design.features, design.norm, 1), act())
        self.head = nn.Linear(design.features, sum(map(len, ATTRIBUTES.values())))

    def maps(self, images: Tensor) -> list[Tensor]:
        """The maps (B, C, h, w) after every stage, from half the size of the image down to a sixteenth."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images have shape {tuple(images.shape)}; the judge reads (B, 3, H, W) in 0..1")
        batch, _, height, width = images.shape
        y = torch.linspace(-1, 1, height, device=images.device).view(1, 1, -1, 1).expand(batch, 1, height, width)
        x = torch.linspace(-1, 1, width, device=images.device).view(1, 1, 1, -1).expand(batch, 1, height, width)
        maps = [torch.cat([images * 2 - 1, y.to(images), x.to(images)], 1)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]

    def features(self, images: Tensor) -> Tensor:
        """What the heads read, (B, features)."""
        return self.summary(self.maps(images)[-1])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits (B, answers) for every attribute, in the order of `ATTRIBUTES`."""
        logits = self.head(self.features(images))
        return logits.split([len(answers) for answers in ATTRIBUTES.values()], 1)


def _norm(width: int, kind: str, dimensions: int) -> nn.Module:
    if kind == "group":
        return nn.GroupNorm(8, width) if dimensions == 2 else nn.LayerNorm(width)
    return nn.BatchNorm2d(width) if dimensions == 2 else nn.BatchNorm1d(width)


def _stage(inputs: int, outputs: int, stride: int, norm: str) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), _norm(outputs, norm, 2),
                         nn.SiLU() if norm == "group" else nn.ReLU())


# -- files -------------------------------------------------------------------------------------------------------------

def save_judge(model: Judge, path: Path, measured: dict[str, float]) -> None:
    """fp16 safetensors with the judge's design and its own accuracy on fresh images in the header."""
    state = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, state, {"format": "pt", "accuracy": json.dumps(measured),
                                "design": json.dumps(asdict(model.design))})


def load_judge(path: Path) -> Judge:
    """Reads what `save_judge` wrote, in fp32, ready to read images."""
    with safe_open(str(path), "pt") as file:
        header = file.metadata() or {}
        if "design" not in header:
            raise ValueError(f"{path} does not say the design of a judge; it was not written by save_judge")
        design = json.loads(header["design"])
        model = Judge(Design(**design | {"widths": tuple(design["widths"])}))
        state = {name: file.get_tensor(name).to(value.dtype) for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    return model.eval()


def own_accuracy(path: Path) -> dict[str, float]:
    """The judge's accuracy on real images, as measured when it was trained."""
    with safe_open(str(path), "pt") as file:
        return json.loads(file.metadata()["accuracy"])


# -- training ----------------------------------------------------------------------------------------------------------

def train_judge(path: Path, scenery: Scenery, steps: int = 2000, batch: int = 64, seed: int = 0,
                state: Path | None = None, rate: float = 2e-3, design: Design = DESIGNS["b"],
                autocast: bool = False) -> Judge:
    """Trains on fresh images of both splits, noisy, blurred and relit, and writes `path` with its own accuracy."""
    torch.manual_seed(seed)
    device = scenery.ordinary.codes.device
    model = Judge(design).to(device, memory_format=torch.channels_last).train()     # type: ignore[call-overload]
    progress = ResumableTraining(path.stem, model, rate, steps, state, seed)
    for step in progress:
        clean, wanted = scenery.render_mixed(torch.Generator(device).manual_seed(seed * 1_000_003 + step), batch)
        images = worsen(clean, random.Random(f"judge {seed} {step}"))
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            logits = model(images.contiguous(memory_format=torch.channels_last))
        progress.advance(_loss(logits, wanted))
    model.eval()
    save_judge(model, path, {})
    model = load_judge(path).to(device)
    measured = measure_judge(model, 2000, device)
    logger.info("%s: %s", path.stem, measured)
    save_judge(model, path, measured)
    return model


def _loss(logits: tuple[Tensor, ...], wanted: Tensor) -> Tensor:
    """Mean cross entropy over the stated attributes; a column without any adds nothing."""
    losses = [F.cross_entropy(given.float(), column, reduction="sum", label_smoothing=0.01)
              for given, column in zip(logits, wanted.T)]
    return torch.stack(losses).sum() / (wanted >= 0).sum()


def fresh_batch(step: int, batch: int, seed: str) -> tuple[list[Scene], Tensor]:
    """Batch number `step` of an endless row, rendered by PIL: scenes, a quarter held out and every third batch crowded,
    and images (batch, 3, H, W) in 0..1."""
    rng = random.Random(f"{seed} {step}")
    height, width = BUCKETS[step % len(BUCKETS)]
    scenes = [sample_scene(rng.getrandbits(40), 1, "held-out" if k % 4 == 0 else "train", crowded=step % 3 == 2)
              for k in range(batch)]
    arrays = [torch.from_numpy(render_scene(scene, height, width, rng)) for scene in scenes]
    return scenes, torch.stack(arrays).permute(0, 3, 1, 2).float() / 255


def worsen(images: Tensor, rng: random.Random) -> Tensor:
    """What generated images suffer from: blur, noise, wrong brightness and tint. (B, 3, H, W) in 0..1."""
    batch, _, height, width = images.shape
    if rng.random() < 0.4:
        small = F.interpolate(images, scale_factor=rng.choice((0.5, 0.625, 0.75)), mode="area")
        images = F.interpolate(small, (height, width), mode="bilinear")
    tint = 1 + 0.08 * torch.randn(batch, 3, 1, 1, device=images.device)
    shift = 0.03 * torch.randn(batch, 3, 1, 1, device=images.device)
    noise = rng.uniform(0, 0.08) * torch.randn_like(images)
    return (images * tint + shift + noise).clamp(0, 1)


def measure_judge(model: Judge, count: int = 2000, device: torch.device | str = "cpu") -> dict[str, float]:
    """The judge's own accuracy on `count` fresh, clean images that no training saw."""
    scenes: list[Scene] = []
    choices: list[Tensor] = []
    for step in range(count // 50):
        some, images = fresh_batch(step, 50, "judge measured")
        scenes += some
        choices.append(most_likely(model, images.to(device)).cpu())
    return Answers.of(scenes, torch.cat(choices)).shares()
