"""Methods: anything with a name that generates the images of a bench, and those that the command line can name."""
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ...accelerate.choice import CacheChoice, choice_of
from ...accelerate.plan import SamplingJob
from ...checkpoint import load, read_config
from ...checkpoint.feedback import load_feedback
from ...checkpoint.lora.read import read_lora
from ...checkpoint.merged import with_loras
from ...control.control_image import ControlImage
from ...generation.pipeline import Pipeline
from ...model.controlnet import PixArtControlNet
from ...model.feedback import PlacedInnerLoop
from ...model.policy import Policy
from ...model.transformer import PixArtTransformer
from ...sampling.samplers import SAMPLERS
from .. import Files
from .batches import BenchImages
from .bench import Bench
from .prompts import PromptGroup

logger = logging.getLogger(__name__)

Follow = Callable[[PromptGroup], ControlImage]  # edge maps for a group of prompts


class GenerationMethod(Protocol):
    """What can be evaluated. The images of the first prompts must not depend on how many follow."""

    @property
    def name(self) -> str:
        """A short name, the row's title in tables."""

    def generate(self, bench: Bench) -> BenchImages:
        """The images of all prompts of `bench`, from its initial noise."""


@dataclass(frozen=True)
class Sampled:
    """Weights and how to sample from them."""

    name: str
    weights: str | Path              # "teacher" or "student" of PixArt-mini, or a file
    sampler: str
    steps: int
    guidance: float = 1.0
    lora: Path | None = None         # on top of the weights
    cache: CacheChoice | None = None  # reuse of work from step to step
    feedback: Path | None = None     # inner loop feedback (ILF) in every step

    def model(self, files: Files, device: torch.device | str = "cpu") -> PixArtTransformer:
        """In float32, with the LoRA merged. Raises what reading the files raises."""
        read = [file for file in (self.file(files), self.lora) if file is not None]
        changed = tuple(file.stat().st_mtime_ns if file.exists() else 0 for file in read)
        return _model(tuple(read), changed, torch.device(device))

    def file(self, files: Files) -> Path:
        """Where the weights are, without the LoRA."""
        return self.weights if isinstance(self.weights, Path) else getattr(files, self.weights)

    def check(self, files: Files) -> None:
        """Refuse files that are missing or not PixArt, before any work. Raises what reading raises."""
        config = read_config(self.file(files))
        if self.lora:
            read_lora(self.lora)
        if self.feedback:
            load_feedback(self.feedback).check(config)

    def policies(self, bench: Bench, model: PixArtTransformer) -> list[Policy]:
        """Those of the feedback or the cache, planned for a square image; other sizes have about as many tokens."""
        if self.feedback:
            return [PlacedInnerLoop(load_feedback(self.feedback))]
        if self.cache is None:
            return []
        side, guided = model.config.resolution, SAMPLERS[self.sampler].guided and self.guidance != 1
        plan, line = self.cache.plan(SamplingJob.of(model.config, self.steps, side, side, bench.captions.mask.shape[1],
                                                    guided))
        logger.info("%s: %s", self.name, line)
        return plan.make()

    def generate(self, bench: Bench, controlnet: PixArtControlNet | None = None,
                 follow: Follow | None = None) -> BenchImages:
        """follow: gives the edge map of a group, with its latent, for the ControlNet."""
        model = self.model(bench.files, bench.device)
        return self.generate_with(model, self.policies(bench, model), bench, controlnet, follow)

    def generate_with(self, model: PixArtTransformer, policies: Sequence[Policy], bench: Bench,
                      controlnet: PixArtControlNet | None = None, follow: Follow | None = None) -> BenchImages:
        """`generate` with a model that is loaded already, and other policies than the method's own."""
        pipe = Pipeline.of(model, controlnet=controlnet)

        def sampled(group: PromptGroup) -> Tensor:
            request = bench.request(group, self.sampler, self.steps, self.guidance)
            return pipe.sample(request, bench.text(group), bench.null, follow and follow(group), policies, bench.batch)
        return bench.generate_groups(sampled)


@lru_cache(maxsize=1)
def _model(read: tuple[Path, ...], changed: tuple[int, ...], device: torch.device) -> PixArtTransformer:
    """Weights and perhaps a LoRA, keyed by modification times, so that a rewritten file is read again."""
    weights, *loras = read
    model = with_loras(load(weights, dtype=torch.float32, device=device), [(lora, 1.0) for lora in loras])
    return model.eval().requires_grad_(False)


USUAL_METHODS = (
    Sampled("teacher, 20 steps, guidance 2.5", "teacher", "dpm", 20, 2.5),
    Sampled("LCM, 4 steps", "student", "lcm", 4),
    Sampled("LCM, 2 steps", "student", "lcm", 2),
    Sampled("LCM, 1 step", "student", "lcm", 1),
)
TEACHER_METHOD, LCM_METHOD = USUAL_METHODS[:2]

_SPEC = re.compile(rf"(?:(?P<name>[^=]+)=)?(?P<weights>.+?)(?:\+(?P<lora>.+?))?:(?P<sampler>{'|'.join(SAMPLERS)})"
                   r"(?::(?P<steps>\d+)(?::(?P<guidance>\d+(?:\.\d+)?))?)?(?:@(?P<policy>.+))?")


def method_of(text: str) -> Sampled:
    """`[NAME=]WEIGHTS[+LORA]:SAMPLER[:STEPS[:GUIDANCE]][@POLICY]`, such as `teacher:dpm:20:2.5@fora=2x`.

    WEIGHTS is teacher, student or a file. POLICY is a cache, METHOD[=BUDGET] (fora=2x) or a schedule file of ECAD
    (.json), or a feedback file (.safetensors). ValueError for anything else.
    """
    found = _SPEC.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is not a method; write [NAME=]WEIGHTS[+LORA]:SAMPLER[:STEPS[:GUIDANCE]]"
                         f"[@POLICY], with teacher, student or a file, and one of {', '.join(SAMPLERS)}: "
                         "teacher:dpm:20:2.5")
    part = found.groupdict()
    steps = int(part["steps"] or SAMPLERS[part["sampler"]].steps)
    guidance = float(part["guidance"] or 1)
    sampler = SAMPLERS[part["sampler"]]
    if guidance != 1 and not sampler.guided:
        raise ValueError(f"{text!r} has guidance, which the sampler {sampler.name} does not know; leave it out")
    sampler.times(steps, next(iter(sampler.rules), ""))
    weights = part["weights"] if part["weights"] in ("teacher", "student") else Path(part["weights"])
    lora = Path(part["lora"]) if part["lora"] else None
    cache, feedback = _policy(part["policy"], sampler.name)
    title = _title(weights, lora, part["sampler"], steps, guidance)
    title += (f", {cache.title}" if cache else "") + (f", feedback {feedback.stem}" if feedback else "")
    return Sampled(part["name"] or title, weights, part["sampler"], steps, guidance, lora, cache, feedback)


def _policy(text: str | None, sampler: str) -> tuple[CacheChoice | None, Path | None]:
    """The cache, or the file of feedback."""
    if text is None:
        return None, None
    if not text.endswith(".safetensors"):
        return choice_of(text), None
    if sampler != "ddim":
        raise ValueError(f"feedback is trained for the sampler ddim, not {sampler}; write ddim: {text}")
    return None, Path(text)


def _title(weights: str | Path, lora: Path | None, sampler: str, steps: int, guidance: float) -> str:
    stem = {"teacher": "teacher", "student": "LCM"}.get(str(weights)) or Path(weights).stem
    words = [stem + (f" + {lora.stem}" if lora else ""), f"{steps} step{'s' * (steps > 1)}"]
    plain = sampler == ("dpm" if weights == "teacher" and not lora else "lcm")
    return ", ".join(words + ([f"guidance {guidance:g}"] if guidance != 1 else []) + ([] if plain else [sampler]))


def few_step(students: Sequence[Path], loras: Sequence[Path], steps: Sequence[int] = (4, 2, 1)) -> list[Sampled]:
    """Other students than the shipped one, and LCM-LoRAs on the teacher, each in these numbers of steps."""
    made: list[tuple[str | Path, Path | None]] = [*((path, None) for path in students),
                                                  *(("teacher", path) for path in loras)]
    return [Sampled(_title(weights, lora, "lcm", count, 1), weights, "lcm", count, lora=lora)
            for weights, lora in made for count in steps]
