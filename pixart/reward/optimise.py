"""ReNO: the noise a one- or few-step generator starts from, changed so that its image scores higher.

Eyring et al. 2024, "ReNO: Enhancing One-step Text-to-Image Models through Reward-based Noise Optimization", section 3,
and its published settings: gradient ascent on a weighted sum of rewards, with a regulariser that keeps the noise as
long as Gaussian noise is. The networks stay as they are. Shapes: noise (B, C, h, w); rows do not depend on each other.
"""
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .protocol import WeightedSum

logger = logging.getLogger(__name__)

Generate = Callable[[Tensor], Tensor]   # noise (B, C, h, w) -> images (B, 3, H, W) in 0..1, differentiable


@dataclass(frozen=True)
class NoiseRecipe:
    """How the noise is changed; defaults as published."""

    iterations: int = 50            # images generated: one update of the noise less
    rate: float = 5.0               # learning rate of gradient descent
    momentum: float = 0.9           # of Nesterov's kind
    clip: float = 0.1               # largest norm of a gradient
    regularisation: float = 0.01    # how strongly the noise is held at the length of Gaussian noise

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"{self.iterations} iterations asked for; at least 1 is needed, which keeps the noise")
        if self.rate < 0 or self.clip <= 0 or self.regularisation < 0 or not 0 <= self.momentum < 1:
            raise ValueError(f"rate is {self.rate}, clip {self.clip}, regularisation {self.regularisation}, momentum "
                             f"{self.momentum}; expected >= 0, > 0, >= 0, and at least 0 and below 1")


PUBLISHED_RECIPE = NoiseRecipe()


@dataclass(frozen=True)
class Iteration:
    """What became of one iteration, a number an image in each list."""

    number: int                         # from 1
    scores: dict[str, list[float]]      # of every reward, unweighted
    total: list[float]                  # their weighted sum
    best: list[float]                   # highest total so far
    norm: list[float]                   # length of the noise
    gradient: list[float]               # length of its gradient before clipping; 0 where there was no update
    dropped: list[bool]                 # not finite: this iteration taught nothing


@dataclass
class OptimisedNoise:
    """The best there was: noise (B, C, h, w) and images (B, 3, H, W) in 0..1, float32 on the CPU, totals (B,)."""

    noise: Tensor
    images: Tensor
    total: Tensor
    history: list[Iteration] = field(default_factory=list)
    stopped: bool = False               # by the user, before all iterations were made


WatchIteration = Callable[[Iteration, Tensor], None]  # (what was done, its images); KeyboardInterrupt ends the work


def optimise_noise(generate: Generate, reward: WeightedSum, prompts: Sequence[str], noise: Tensor,
                   recipe: NoiseRecipe = PUBLISHED_RECIPE,
                   watch: WatchIteration | None = None,
                   stops: tuple[type[BaseException], ...] = (KeyboardInterrupt,)) -> OptimisedNoise:
    """Raise the reward of the images that `generate` makes from noise; the best of all iterations is returned.

    noise: float32, not changed. An image whose reward or gradient is not finite drops its iteration: its
    noise goes back by half of its last step and loses its momentum. stops: exceptions, wherever they come from, that
    end the work; the best so far is returned, and where there is none they are raised again. Call it outside of
    inference mode, whose tensors have no gradients. Raises ValueError, and FloatingPointError where no iteration of an
    image gave a finite reward.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError("noise cannot be optimised in inference mode; call this within torch.inference_mode(False)")
    ascent = Ascent(generate, reward, prompts, noise, recipe)
    with torch.enable_grad():
        try:
            for number in range(1, recipe.iterations + 1):
                done, images = ascent.iterate(number)
                if watch is not None:
                    watch(done, images)
        except stops:
            if not ascent.history:
                raise
            ascent.stopped = True
    return outcome(ascent.best, ascent.history, ascent.stopped)


class Ascent:
    """The state of an optimisation."""

    def __init__(self, generate: Generate, reward: WeightedSum, prompts: Sequence[str], noise: Tensor,
                 recipe: NoiseRecipe) -> None:
        self.generate, self.reward, self.prompts, self.recipe = generate, reward, prompts, recipe
        self.noise = noise.detach().float().clone()
        self.before, self.velocity = self.noise, torch.zeros_like(self.noise)
        self.best = Best(self.noise)
        self.history: list[Iteration] = []
        self.stopped = False

    def iterate(self, number: int) -> tuple[Iteration, Tensor]:
        """Generate, score, remember, and but for the last time change the noise; what was done, and the images."""
        last = number == self.recipe.iterations
        noise = self.noise.detach().requires_grad_(not last)
        with torch.set_grad_enabled(not last):
            images = self.generate(noise)
            scores = self.reward.scores(images, self.prompts)
            total = self.reward.total(scores)
        finite = torch.isfinite(total).detach()
        gradient = torch.zeros_like(self.noise) if last else self._gradient(noise, total, finite)
        finite &= torch.isfinite(gradient.flatten(1)).all(1).to(finite.device)
        if number == 1 and not finite.any():
            raise FloatingPointError(not_finite(scores))
        self.best.take(noise.detach(), images.detach(), total.detach(), finite)
        self.history.append(noted(number, scores, total.detach(), self.best, self.noise, gradient, finite))
        if not last:
            self._step(gradient, finite)
        return self.history[-1], images.detach()

    def _gradient(self, noise: Tensor, total: Tensor, finite: Tensor) -> Tensor:
        """Of what is minimised: regulariser minus reward, summed over the images whose reward is finite."""
        if not finite.any():
            return torch.full_like(noise, float("nan"))
        loss = self.recipe.regularisation * radial(noise) - total.to(noise.device)
        return torch.autograd.grad(loss[finite.to(noise.device)].sum(), noise)[0]

    def _step(self, gradient: Tensor, finite: Tensor) -> None:
        """Descent with Nesterov's momentum on clipped gradients; half the way back where nothing was learnt."""
        good, momentum = finite.view(-1, 1, 1, 1).to(gradient.device), self.recipe.momentum
        gradient = clipped(torch.where(good, gradient, 0.0), self.recipe.clip)
        self.velocity = torch.where(good, momentum * self.velocity + gradient, 0.0)
        ahead = self.noise - self.recipe.rate * (gradient + momentum * self.velocity)
        back = (self.noise + self.before) / 2
        self.before, self.noise = (torch.where(good, self.noise, self.before), torch.where(good, ahead, back))


class Best:
    """The noise with the highest total so far, its image and that total, for every row."""

    def __init__(self, noise: Tensor) -> None:
        self.noise = noise.clone()
        self.images = torch.empty(0)
        self.total = torch.full((len(noise),), float("-inf"))

    def take(self, noise: Tensor, images: Tensor, total: Tensor, finite: Tensor) -> None:
        """Keep those rows that are better than what was there."""
        if not len(self.images):
            self.images = images.float().cpu().clone()
        better = (finite & (total > self.total.to(total.device))).cpu()
        self.total[better] = total.float().cpu()[better]
        self.images[better] = images.float().cpu()[better]
        self.noise[better.to(noise.device)] = noise[better.to(noise.device)]


def noted(number: int, scores: dict[str, Tensor], total: Tensor, best: Best, noise: Tensor, gradient: Tensor,
          finite: Tensor) -> Iteration:
    """What became of an iteration, whose dropped images are logged."""
    lost = (~finite).nonzero()[:, 0].tolist()
    if lost:
        logger.warning("iteration %d dropped for image %s: %s", number, ", ".join(map(str, lost)), not_finite(scores))
    lengths, slopes = (torch.linalg.vector_norm(part.flatten(1), dim=1) for part in (noise, gradient))
    return Iteration(number, {name: score.tolist() for name, score in scores.items()}, total.tolist(),
                     best.total.tolist(), lengths.tolist(), slopes.tolist(), (~finite).tolist())


def outcome(best: Best, history: list[Iteration], stopped: bool) -> OptimisedNoise:
    """FloatingPointError where an image never had a finite reward."""
    if not torch.isfinite(best.total).all():
        raise FloatingPointError("an image never had a reward that is finite; use float32 or bfloat16")
    return OptimisedNoise(best.noise.cpu(), best.images.cpu(), best.total.cpu(), history, stopped)


def radial(noise: Tensor) -> Tensor:
    """Minus log-density of the length of Gaussian noise of d numbers, (B,): least at sqrt(d - 1)."""
    flat = noise.flatten(1).float()
    length = torch.linalg.vector_norm(flat, dim=1)
    return 0.5 * length ** 2 - (flat.shape[1] - 1) * length.log()


def clipped(gradient: Tensor, most: float) -> Tensor:
    """Each row cut to the norm `most`, as torch.nn.utils.clip_grad_norm_ cuts a whole gradient."""
    length = torch.linalg.vector_norm(gradient.flatten(1), dim=1).view(-1, 1, 1, 1)
    return gradient * (most / (length + 1e-6)).clamp(max=1)


def not_finite(scores: dict[str, Tensor]) -> str:
    """Which rewards, or the gradient, held what is not a number."""
    names = [name for name, score in scores.items() if not torch.isfinite(score).all()]
    what = f"the reward {', '.join(names)}" if names else "the gradient"
    return f"{what} is not finite; use dtype float32 or bfloat16, and if that does not help, other weights"
