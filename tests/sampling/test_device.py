"""What sampling and the losses ask of a device: float32 only, no copy to it and no question to it while they run.

The meta device stands in for a GPU. A dispatch mode sees every operation, so it counts what would cross the bus.
"""
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pixart.config import PixArtConfig
from pixart.control.control_image import ControlImage
from pixart.generation.request import Request
from pixart.generation.sample import AppliedControl, sample
from pixart.model.controlnet import PixArtControlNet
from pixart.model.transformer import PixArtTransformer
from pixart.sampling import schedule
from pixart.sampling.noise import ImageNoise
from pixart.sampling.samplers import SAMPLERS
from pixart.text.encoded import Encoded
from pixart.train.consistency import consistency_loss
from pixart.train.diffusion import diffusion_loss

DEVICE = torch.device("meta")
CONFIG = PixArtConfig(depth=2, hidden=48, heads=4, caption_width=16, caption_tokens=8, base_size=4, position_scale=1.0)


class Device(TorchDispatchMode):
    """Refuses float64 on the device, and counts copies to it and questions about its values."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = self.questions = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        assert not any(t.device == DEVICE and t.dtype == torch.float64 for t in given + made), f"{func} in float64"
        self.questions += func is torch.ops.aten._local_scalar_dense.default
        moved = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        there = any(t.device == DEVICE for t in made)
        self.copies += there and any(t.device != DEVICE and (moved or t.ndim > 0) for t in given)
        return result


def features(rows: int, length: int) -> Encoded:
    return Encoded(torch.zeros(rows, length, CONFIG.caption_width), torch.ones(rows, length, dtype=torch.bool), [])


def crossings(sampler: str, steps: int, control: AppliedControl | None) -> Device:
    model = PixArtTransformer(CONFIG, device=DEVICE)
    request = Request(("a", "b"), height=64, width=32, sampler=sampler, steps=steps)
    with Device() as seen:
        sample(model, request, features(2, 5), features(1, 3), control=control)
    return seen


@pytest.mark.parametrize("control", [None, (0.0, 1.0), (0.0, 0.5)])
@pytest.mark.parametrize("sampler", ["lcm", "dpm"])
def test_a_step_neither_copies_to_the_device_nor_asks_it(sampler, control):
    """Ten steps cross the bus as often as two: all that is copied is copied before the first."""
    control = None
    if control is not None:
        edges = torch.zeros(1, 3, 64, 32)
        control = AppliedControl(PixArtControlNet(CONFIG, 1, device=DEVICE), ControlImage(edges, 1.0, *control),
                          torch.zeros(1, 4, 8, 4))
    _, few, many = (crossings(sampler, steps, control) for steps in (1, 2, 10))      # the first fills caches
    assert few.copies == many.copies > 0
    assert few.questions == many.questions == 0


def test_text_and_noise_are_all_that_is_copied_to_the_device():
    """With the position table of a new model, and the mask where prompts differ in length. Each copy is a wait."""
    assert crossings("lcm", 4, None).copies == 3
    assert crossings("dpm", 4, None).copies == 4    # the negative prompt is shorter


def test_every_sampler_runs_on_a_device_without_float64():
    for name, chosen in SAMPLERS.items():
        assert crossings(name, chosen.steps, None).questions == 0


def test_the_counter_counts():
    with Device() as seen:
        for _ in range(3):
            torch.ones(2).to(DEVICE)
        torch.ones(()).to(DEVICE)
        torch.ones(1).item()
    assert (seen.copies, seen.questions) == (4, 1)
    with Device(), pytest.raises(AssertionError, match="float64"):
        torch.ones(2, device=DEVICE).double()


def losses() -> list[Callable[[], torch.Tensor]]:
    x0, noise = (torch.zeros(3, 4, 8, 8, device=DEVICE) for _ in range(2))
    t = torch.zeros(3, dtype=torch.long, device=DEVICE)

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x * t.view(-1, 1, 1, 1)

    return [lambda: consistency_loss(model, model, lambda x, t: (x, x), x0, noise, t),
            lambda: diffusion_loss(torch.zeros(3, 8, 8, 8, device=DEVICE), x0, noise, t).mean()]


@pytest.mark.parametrize("number", [0, 1])
def test_losses_need_no_float64_and_copy_tables_once(number):
    loss = losses()[number]
    with Device():
        loss()
    with Device() as seen:
        loss()
    assert (seen.copies, seen.questions) == (0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_timestep_and_a_batch_of_it_agree(dtype):
    """The float that a sampler uses and the rounded table that a loss uses."""
    x, eps = (torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(2))
    rounding = 0 if dtype != torch.bfloat16 else 2e-2
    for t in (1, 19, 400, 999):
        many = torch.tensor([t, t])
        for formula in (schedule.add_noise, schedule.predicted_x0):
            torch.testing.assert_close(formula(x, eps, t), formula(x, eps, many), rtol=rounding, atol=rounding)


def test_tables_made_while_tracing_are_not_kept():
    from torch._subclasses.fake_tensor import FakeTensorMode
    table = schedule.Table([1.0, 2.0])
    with FakeTensorMode():
        assert type(table.at(torch.tensor([1]), torch.zeros(1))) is not torch.Tensor
    assert table.at(torch.tensor([1]), torch.zeros(1)).item() == 2.0


def test_noise_made_ahead_is_the_same_noise():
    one_by_one, ahead = ImageNoise([3, 4], (4, 2, 2)), ImageNoise([3, 4], (4, 2, 2), ahead=3)
    for _ in range(7):
        assert torch.equal(one_by_one(), ahead())


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_the_table_tells_when_the_model_is_called_and_how_often_noise_is_drawn(name):
    chosen = SAMPLERS[name]
    for steps in {1, 2 if chosen.steps > 1 else 1, chosen.steps}:
        for rule in chosen.rules or ("official",):
            called, drawn = [], []

            def model(x: torch.Tensor, t: torch.Tensor, called: list = called) -> torch.Tensor:
                called.append(t.tolist())
                return 0.1 * x

            def noise(drawn: list = drawn) -> torch.Tensor:
                drawn.append(torch.ones(2, 4, 2, 2))
                return drawn[-1]

            chosen.run(model, noise, steps, rule, None)
            times = torch.tensor(chosen.times(steps, rule))
            assert called == times[:, None].expand(-1, 2).tolist() and len(drawn) == chosen.noises(steps)
