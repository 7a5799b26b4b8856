"""Distilling feedback: its target is where the teacher's own steps lead, and the command trains, stops and resumes."""
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from train.training_data import TINY, fresh, write_data

from pixart.checkpoint import save_checkpoint
from pixart.checkpoint.feedback import load_feedback
from pixart.model.feedback import Feedback, WithFeedback
from pixart.sampling.dpm_solver import dpm_solver_pp, nodes
from pixart.train import command, settings
from pixart.train.data import PreparedFolder
from pixart.train.draws import draw_rows, generator_for
from pixart.train.initialize import initialize_block
from pixart.train.inner_loop import InnerLoopDistillation, mean_prediction
from pixart.train.method_settings import IlfMethod
from pixart.train.objectives import draw_noise


def network(x: Tensor, t: Tensor) -> Tensor:
    """A guided pair: with caption, then without."""
    both = torch.cat([x, x]) + torch.cat([torch.zeros_like(x), 0.3 * torch.ones_like(x)])
    return torch.sin(1.3 * both) + t.view(-1, 1, 1, 1).repeat(2, 1, 1, 1) / 700


def test_one_step_along_the_mean_is_where_the_teachers_steps_lead():
    path, x = nodes(12), torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen: list[Tensor] = []

    def guided(x: Tensor, t: Tensor) -> Tensor:
        cond, uncond = network(x, t).chunk(2)
        return uncond + 3 * (cond - uncond)
    dpm_solver_pp(guided, x, 12, callback=lambda step, x, x0: seen.append(x), second_order=False)
    for start in (0, 3, 8):
        way = [[node] for node in path[start:start + 4]]
        cond, uncond = mean_prediction(network, seen[start], way, 3).chunk(2)
        eps, (here,), (there,) = uncond + 3 * (cond - uncond), way[0], way[-1]
        x0 = (seen[start] - here.sigma * eps) / here.alpha
        torch.testing.assert_close(there.alpha * x0 + there.sigma * eps, seen[start + 3], rtol=2e-5, atol=2e-5)


def test_ddim_is_the_first_order_of_dpm_solver():
    noise = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def model(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(x)
    x, path = noise, nodes(7)
    for here, there in zip(path, path[1:]):
        eps = model(x, torch.tensor([here.time]))
        x = there.alpha * (x - here.sigma * eps) / here.alpha + there.sigma * eps
    torch.testing.assert_close(dpm_solver_pp(model, noise, 7, second_order=False), x)
    assert (dpm_solver_pp(model, noise, 7) - x).abs().max() > 1e-3


def test_the_loss_falls_and_only_feedback_learns(tmp_path):
    data = PreparedFolder(write_data(tmp_path / "data"))
    base, feedback = fresh().requires_grad_(False), Feedback(TINY, 0, 1)
    initialize_block(feedback.block, 0)
    model, objective = WithFeedback(base, feedback), InnerLoopDistillation(data, steps=3, guidance=2.0)
    optimizer = torch.optim.Adam(feedback.parameters(), 3e-3)
    losses = []
    for number in range(60):
        generator = generator_for(0, number % 4)
        loss = objective(model, model, data.batch(generator, 8), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert math.fsum(losses[-4:]) < 0.6 * math.fsum(losses[:4])
    assert all(p.grad is None for p in base.parameters())


def test_the_teacher_is_the_base_without_feedback_on_the_way_of_one_step(tmp_path):
    """Also once the feedback has learned something: it would teach itself."""
    data, base, feedback = PreparedFolder(write_data(tmp_path)), fresh().requires_grad_(False), Feedback(TINY, 0, 1)
    initialize_block(feedback.block, 0)
    torch.nn.init.normal_(feedback.scales, generator=torch.Generator().manual_seed(0))
    model, objective = WithFeedback(base, feedback), InnerLoopDistillation(data, steps=3, substeps=2, guidance=2.0)
    batch, step, every = data.batch(generator_for(0, 0), 2), torch.tensor([0, 2]), nodes(6)
    assert objective.path(step) == [[every[0], every[4]], [every[1], every[5]], [every[2], every[6]]]
    generator = generator_for(0, 0)
    path = objective.path(draw_rows(partial(torch.randint, 3), (2,), generator))
    noise, silent = draw_noise(batch, generator), data.without_caption(batch)
    both = {name: torch.cat([one, silent.conditions()[name]]) for name, one in batch.conditions().items()}
    alpha, sigma = (torch.tensor([getattr(node, part) for node in path[0]]).view(-1, 1, 1, 1)
                    for part in ("alpha", "sigma"))
    x = alpha * batch.latents + sigma * noise

    def teacher(x: Tensor, t: Tensor) -> Tensor:
        return base(torch.cat([x, x]), torch.cat([t, t]), **both)
    with torch.no_grad():
        made = model(torch.cat([x, x]), torch.tensor([node.time for node in path[0]] * 2), **both)
        want = (made - mean_prediction(teacher, x, path, 2.0)).square().mean()
        torch.testing.assert_close(objective(model, model, batch, generator_for(0, 0)), want)


def test_the_blocks_are_the_middle_half_by_default():
    assert IlfMethod().blocks(28) == (7, 20) and IlfMethod().blocks(1) == (0, 0)
    assert IlfMethod(first=3, last=5).blocks(28) == (3, 5)
    with pytest.raises(ValueError, match="substeps 1; expected at least 1 and 2"):
        IlfMethod(substeps=1)


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    base = save_checkpoint(tmp_path / "base.safetensors", fresh())
    told = {"model.base": base, "data.folder": write_data(tmp_path / "data"), "output.folder": tmp_path / "run",
            "output.file": tmp_path / "ilf.safetensors", "output.dtype": "fp32", "train.steps": 4, "train.batch": 2,
            "train.save_every": 2, "train.precision": "no", "train.learning_rate": 1e-3, "train.ema": 0.5,
            "method.steps": 3}
    return [str(word) for key, value in told.items() for word in (f"--{key}", value)]


def run(words: list[str]) -> None:
    given = command.method_parser("ilf").parse_args(words)
    from accelerate import PartialState
    command.execute(settings.read_settings("ilf", None, command.replacements(given)), PartialState(cpu=True))


def test_the_command_writes_a_file_and_a_resumed_run_the_same(words, tmp_path):
    run(words)
    whole = load_feedback(tmp_path / "ilf.safetensors")
    assert (whole.first, whole.last, whole.steps, whole.config) == (0, 0, 3, TINY)
    first = load_file(tmp_path / "ilf.safetensors")
    again = [word.replace(str(tmp_path / "run"), str(tmp_path / "two")) for word in words]
    short = list(again)
    short[short.index("--train.steps") + 1] = "2"
    run(short)
    run(again)
    second = load_file(tmp_path / "ilf.safetensors")
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())
    assert any(tensor.abs().sum() > 0 for name, tensor in first.items() if name == "scales")


@pytest.mark.parametrize("more, message", [
    (["--output.file", "ilf"], "must end in .safetensors"),
    (["--validate.prompts", "['a']", "--validate.vae", "v", "--validate.t5", "t"], "no effect with ilf"),
    (["--method.last", "2"], "blocks 0 to 2 are to run twice; this model has blocks 0 to 1")])
def test_what_cannot_be_meant_is_refused(more, message, words):
    with pytest.raises(ValueError, match=message):
        run([*words, *more])
