"""The seam: exact where everything is computed, and right by lanes however rows come together."""
import pytest
import torch
from model.reuse import (
    AskedEverywhere,
    Feedback,
    Nothing,
    Pooled,
    ReuseBlock,
    ReuseBranches,
    ReuseStack,
    Silent,
)
from torch import Tensor

from pixart.config import PixArtConfig
from pixart.model.controlnet import PixArtControlNet
from pixart.model.policy import Pass, Policy, Step
from pixart.model.transformer import PixArtTransformer

TINY = PixArtConfig(depth=4, hidden=48, heads=4, caption_width=10, caption_tokens=8, base_size=8, position_scale=1.0)
STEPS = 6
LANES = [(image, prompt) for prompt in ("positive", "negative") for image in (0, 1)]
BRANCHES = ("attn", "cross_attn", "mlp")
POLICIES = {
    "branches": lambda: [ReuseBranches()], "block": lambda: [ReuseBlock()], "stack": lambda: [ReuseStack()],
    "pooled": lambda: [Pooled()], "pooled branches": lambda: [ReuseBranches(3), Pooled()],
    "blocks and branches": lambda: [ReuseBlock(2), ReuseBranches()],
}


def random_weights(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)


@pytest.fixture(scope="module")
def model() -> PixArtTransformer:
    model = PixArtTransformer(TINY).eval().requires_grad_(False)
    random_weights(model)
    return model


@pytest.fixture(scope="module")
def control() -> PixArtControlNet:
    control = PixArtControlNet(TINY, 2).eval().requires_grad_(False)
    random_weights(control)
    return control


def step(index: int, lanes: list | None = None, run: object = "run") -> Step:
    return Step(index, STEPS, 900.0 - 100 * index, tuple(LANES if lanes is None else lanes), run)


def rows(index: int = 0) -> dict[str, Tensor]:
    """What the four lanes are given in a step: two images, each with two prompts of unequal length."""
    generator = torch.Generator().manual_seed(index)
    images = torch.randn(2, 4, 8, 12, generator=generator)
    prompts = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(99))
    mask = torch.arange(6) < torch.tensor([[6], [2]])
    return {"latent": images.repeat(2, 1, 1, 1), "timestep": torch.full((4,), 900.0 - 100 * index),
            "context": prompts.repeat_interleave(2, 0), "mask": mask.repeat_interleave(2, 0)}


def some(given: dict[str, Tensor], chosen: list[int]) -> dict[str, Tensor]:
    """These rows alone; padding is cut off where all of them allow it."""
    part = {name: tensor[chosen] for name, tensor in given.items()}
    longest = int(part["mask"].sum(1).max())
    return {**part, "context": part["context"][:, :longest], "mask": part["mask"][:, :longest]}


def controlled(control: PixArtControlNet | None, model: PixArtTransformer, given: dict[str, Tensor]) -> list | None:
    """Residuals of a hint that differs from row to row, here from latent to latent."""
    return None if control is None else control(model, given["latent"].flip(-1), **given)


def sampled(model, policies, splits, control=None, run: object = None) -> Tensor:
    """(steps, 4, ...) answers; splits(index) says which rows come together in a step."""
    run, answers = run or object(), []
    for index in range(STEPS):
        given, answer = rows(index), torch.empty(4, 4, 8, 12)
        for chosen in splits(index):
            part = some(given, chosen)
            answer[chosen] = model(**part, control=controlled(control, model, part), policies=policies,
                                   step=step(index, [LANES[i] for i in chosen], run))
        answers.append(answer)
    return torch.stack(answers)


SPLITS = {
    "two passes": lambda index: [[0, 1], [2, 3]], "single rows": lambda index: [[3], [0], [2], [1]],
    "by image": lambda index: [[2, 0], [1, 3]],
    "as it comes": lambda index: [[0, 1, 2, 3]] if index % 2 else [[3, 1], [0, 2]],
}


@pytest.mark.parametrize("with_control", [False, True])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", POLICIES)
def test_one_pass_equals_any_passes(model, control, name, split, with_control):
    """Unequal prompts, a batch, control: what is kept belongs to its row, however rows come together."""
    network = control if with_control else None
    want = sampled(model, POLICIES[name](), lambda index: [[0, 1, 2, 3]], network)
    got = sampled(model, POLICIES[name](), SPLITS[split], network)
    assert (got - want).abs().max() <= 2e-5 * want.abs().max()
    plain = sampled(model, [], lambda index: [[0, 1, 2, 3]], network)
    assert (want - plain).abs().max() > 1e-3 * plain.abs().max()


@pytest.mark.parametrize("name", ["branches", "block", "stack"])
def test_two_samplings_in_turn_leave_each_other_alone(model, name):
    """With a policy between them nothing is ever kept, because the run is another one each time."""
    policies, runs = POLICIES[name](), (object(), object())
    for index in range(4):
        for run, seed in zip(runs, (0, 7)):
            given = rows(index + seed)
            got, want = model(**given, policies=policies, step=step(index, run=run)), model(**given)
            assert (got - want).abs().max() <= 1e-5 * want.abs().max()


def test_reuse_computes_less(model):
    policy = ReuseBranches(2)
    sampled(model, [policy], lambda index: [[0, 1], [2, 3]])
    assert policy.computed == 3 * 3 * 4 * 2      # half of the steps, three branches, four blocks, two passes
    assert policy.memory.bytes == 4 * 3 * 4 * 24 * 48 * 4


@pytest.mark.parametrize("policies", [
    [Policy()], [AskedEverywhere()], [Policy(), AskedEverywhere(), Policy()], [ReuseBranches(1), ReuseBlock(99)],
])
def test_policies_that_compute_everything_change_no_bit(model, control, policies):
    residuals = controlled(control, model, rows())
    for given in ({}, {"control": residuals}):
        assert torch.equal(model(**rows(), **given, policies=policies, step=step(0)), model(**rows(), **given))


def test_a_policy_is_asked_at_three_places_in_order(model):
    policy = AskedEverywhere()
    model(**rows(), policies=[policy])
    assert policy.asked == [("stack",), *(place for i in range(4) for place in ((i,), *((i, b) for b in BRANCHES)))]


def test_the_first_policy_is_asked_first(model):
    """What the first one answers, the second one is not asked for."""
    last = AskedEverywhere()
    model(**rows(), policies=[Nothing(), last])
    assert last.asked == [("stack",)]
    first = AskedEverywhere()
    model(**rows(), policies=[first, Nothing()])
    assert first.asked == [("stack",), (0,), (1,), (2,), (3,)]


@pytest.mark.parametrize("name", BRANCHES)
def test_a_branch_that_says_nothing_is_missing_from_the_block(model, name):
    """x + gate * branch, with the branch left out: the others as the block itself computes them."""
    p = captured(model)
    block = model.blocks[2]
    rest = p
    for other in BRANCHES:
        if other != name:
            said = block(rest.x, p.text, p.modulation, p.grid, p.mask, None, other)
            rest = rest.with_x(block.join(other, rest.x, said, block.scale_shift_table(p.modulation)))
    assert torch.equal(model.run_block(2, block, p, [Silent(name)]), rest.x)
    assert not torch.allclose(rest.x, block(p.x, p.text, p.modulation, p.grid, p.mask))


def captured(model) -> Pass:
    """The pass as the first block gets it."""
    seen = []

    class Look(Policy):
        def stack(self, p, go):
            seen.append(p)
            return go(p)

    model(**rows(), policies=[Look()])
    return seen[0]


def test_control_is_there_before_a_block_is_replaced(model, control):
    """Without any block, what is left are the embedded tokens and all residuals."""
    residuals = controlled(control, model, rows())
    p = captured(model)
    want = p.x + residuals[1] + residuals[2]
    time = model.embed(**{k: v for k, v in rows().items() if k != "mask"}, size=None, aspect=None).time
    want = model.unpatchify(model.final_layer(want, time), p.grid)[:, :4]
    assert torch.equal(model(**rows(), control=residuals, policies=[Nothing()]), want)


def test_a_part_of_a_pass_is_that_of_its_rows(model, control):
    """Of everything that has a row each; what is there once is for all rows."""
    p = captured(model)
    residual, shared = torch.randn_like(p.x), torch.randn(1, *p.x.shape[1:])
    whole = Pass(model, p.x, p.text, p.mask, p.modulation, p.grid, [None, residual, shared], None, step(0),
                 torch.arange(4.0))
    part = whole.part([2, 0])
    for name in ("x", "text", "mask", "modulation", "timestep"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[[2, 0]]), name
    assert part.control[0] is None and torch.equal(part.control[1], residual[[2, 0]]) and part.control[2] is shared
    assert part.step.lanes == (LANES[2], LANES[0]) and part.step.run is whole.step.run and part.grid == whole.grid
    assert part.network is whole.network is model


def test_control_is_added_once(model):
    p = captured(model)
    residual = torch.ones_like(p.x)
    given = Pass(model, p.x, p.text, p.mask, p.modulation, p.grid, [None, residual], None, None)
    once = given.controlled(1)
    assert torch.equal(once.x, p.x + 1) and once.controlled(1) is once
    assert given.controlled(0) is given and given.controlled(7) is given and given.control[1] is residual


def test_a_policy_is_asked_once_when_blocks_are_recomputed():
    torch.manual_seed(0)
    model, grads = PixArtTransformer(TINY), []
    for recompute in (False, True):
        policy = AskedEverywhere()
        model.recompute = recompute
        model.zero_grad()
        model(**rows(), policies=[policy], learned_variance=True).square().mean().backward()
        assert len(policy.asked) == 1 + 4 + 12
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads))


def test_gradients_reach_the_noise_through_kept_branches(model):
    """Noise optimisation: the second step reuses the first, so the noise acts through both."""
    noise = rows()["latent"].double()
    double = PixArtTransformer(TINY).double().eval().requires_grad_(False)
    double.load_state_dict(model.state_dict())
    noise.requires_grad_(True)
    given = {name: value.double() if name in ("context", "latent") else value for name, value in rows().items()}

    def loss(noise: Tensor) -> Tensor:
        policies, run = [ReuseBranches()], object()
        first = double(**{**given, "latent": noise}, policies=policies, step=step(0, run=run))
        return double(**{**given, "latent": noise + first}, policies=policies, step=step(1, run=run)).square().mean()

    (slope,) = torch.autograd.grad(loss(noise), noise)
    direction = torch.randn(noise.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        rise = (loss(noise + 1e-6 * direction) - loss(noise - 1e-6 * direction)) / 2e-6
    assert (slope * direction).sum().item() == pytest.approx(rise.item(), rel=1e-6)


def test_a_policy_with_weights_learns(model):
    feedback = Feedback(48)
    with torch.no_grad():
        feedback.map.weight.zero_(), feedback.map.bias.zero_()
    assert torch.equal(model(**rows(), policies=[feedback]), model(**rows()))
    model(**rows(), policies=[feedback]).square().mean().backward()
    assert feedback.map.weight.grad.abs().max() > 0


def test_wrong_steps_are_refused(model):
    with pytest.raises(ValueError, match="3 lanes, the latent has 4 rows"):
        model(**rows(), step=step(0, LANES[:3]))
    with pytest.raises(ValueError, match="two of the 2 lanes are equal"):
        step(0, [1, 1])
    with pytest.raises(ValueError, match="needs to know the sampling step"):
        model(**rows(), policies=[ReuseBranches()])
