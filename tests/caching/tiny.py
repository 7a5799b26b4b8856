"""A tiny model, and a sampling of two images with two prompts each whose rows may come together in any way."""
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pixart.config import PixArtConfig
from pixart.model.controlnet import PixArtControlNet
from pixart.model.policy import Lane, Policy, Step
from pixart.model.transformer import PixArtTransformer

CONFIG = PixArtConfig(depth=5, hidden=48, heads=4, caption_width=10, caption_tokens=8, base_size=8, position_scale=1.0)
STEPS = 6
LANES = [Lane(image, prompt, prompt == "negative") for prompt in ("negative", "positive") for image in (0, 1)]
TOGETHER = [[0, 1, 2, 3]]
SPLITS = {"two passes": [[0, 1], [2, 3]], "single rows": [[3], [0], [2], [1]], "by image": [[2, 0], [1, 3]]}


def random_weights(module: nn.Module, seed: int = 3) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)


def transformer(config: PixArtConfig = CONFIG) -> PixArtTransformer:
    model = PixArtTransformer(config).eval().requires_grad_(False)
    random_weights(model)
    return model


def controlnet() -> PixArtControlNet:
    control = PixArtControlNet(CONFIG, 2).eval().requires_grad_(False)
    random_weights(control)
    return control


def step(index: int, lanes: Sequence = tuple(LANES), run: object = "run", steps: int = STEPS) -> Step:
    return Step(index, steps, 900.0 - 100 * index, tuple(lanes), run)


def rows(index: int, drift: float = 1.0) -> dict[str, Tensor]:
    """What the four rows are given in a step; drift: how much the images change from step to step."""
    start, change = (torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1 + index))
    prompts = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(99))
    mask = torch.arange(6) < torch.tensor([[2], [6]])
    return {"latent": (start + drift * change).repeat(2, 1, 1, 1), "timestep": torch.full((4,), 900.0 - 100 * index),
            "context": prompts.repeat_interleave(2, 0), "mask": mask.repeat_interleave(2, 0)}


def some(given: dict[str, Tensor], chosen: list[int]) -> dict[str, Tensor]:
    """These rows alone; padding is cut off where all of them allow it."""
    part = {name: tensor[chosen] for name, tensor in given.items()}
    longest = int(part["mask"].sum(1).max())
    return {**part, "context": part["context"][:, :longest], "mask": part["mask"][:, :longest]}


def sampled(model: PixArtTransformer, policies: Sequence[Policy], split: Sequence[list[int]] = TOGETHER,
            control: PixArtControlNet | None = None, run: object = None, drift: float = 1.0,
            given: Callable[[int], dict[str, Tensor]] | None = None) -> Tensor:
    """(steps, 4, ...) answers."""
    run, answers = run or object(), []
    for index in range(STEPS):
        whole = given(index) if given else rows(index, drift)
        answer = torch.empty_like(whole["latent"])
        for chosen in split:
            part = some(whole, list(chosen))
            residuals = None if control is None else control(model, part["latent"].flip(-1), **part)
            answer[list(chosen)] = model(**part, control=residuals, policies=policies,
                                         step=step(index, [LANES[i] for i in chosen], run))
        answers.append(answer)
    return torch.stack(answers)


def off(got: Tensor, want: Tensor) -> float:
    """Largest difference as a share of the largest value."""
    return ((got - want).abs().max() / want.abs().max()).item()
