"""What every method promises: exact where all is computed, right by rows, nothing left over, really less work."""
import gc

import pytest
import torch
from caching import tiny
from caching.tiny import CONFIG, SPLITS, STEPS, off, sampled
from torch._dynamo.testing import CompileCounter

from pixart.accelerate import (
    BranchSchedule,
    DeltaCache,
    FirstBlock,
    Limits,
    ReuseBranches,
    StepMask,
    Tally,
    TallyBranches,
    TGate,
    delta_spans,
    every_n,
    fora,
    t_gate_schedule,
)
from pixart.model.feedback import Feedback, InnerLoop

DEPTH = CONFIG.depth


def random_schedule(seed: int = 0, share: float = 0.5) -> BranchSchedule:
    bits = torch.rand(STEPS, DEPTH, 3, generator=torch.Generator().manual_seed(seed)) < share
    return BranchSchedule.of("random", bits)


FULL = {
    "branches": lambda: ReuseBranches(BranchSchedule.full(STEPS, DEPTH)),
    "fora": lambda: ReuseBranches(fora(STEPS, DEPTH, 1)),
    "t-gate": lambda: TGate(t_gate_schedule(STEPS, DEPTH, STEPS + 1), STEPS + 1),
    "delta, every step": lambda: DeltaCache(delta_spans(STEPS, DEPTH, 1, 3)),
    "delta, no block": lambda: DeltaCache(delta_spans(STEPS, DEPTH, 2, 0)),
    "threshold 0": lambda: FirstBlock(DEPTH, 0.0, 2),
    "all steps": lambda: StepMask([True] * STEPS, DEPTH, order=2),
}
REUSING = {
    "random": lambda: ReuseBranches(random_schedule()),
    "fora": lambda: ReuseBranches(fora(STEPS, DEPTH, 3)),
    "every n": lambda: ReuseBranches(every_n(STEPS, DEPTH, 2)),
    "t-gate": lambda: TGate(t_gate_schedule(STEPS, DEPTH, 3, 2, 2, 0), 3),
    "delta": lambda: DeltaCache(delta_spans(STEPS, DEPTH, 3, 3)),
    "threshold": lambda: FirstBlock(DEPTH, 1.11, 1, Limits(1)),
    "threshold, counted": lambda: FirstBlock(DEPTH, 1.11, 2, Limits(1, passes=3)),
    "mask": lambda: StepMask([True, False, True, True, False, False], DEPTH, order=1),
    "mask, ends computed": lambda: StepMask([True, True, True, False, False, True], DEPTH, 1, 1, 2),
}


@pytest.fixture(scope="module")
def model():
    return tiny.transformer()


@pytest.fixture(scope="module")
def control():
    return tiny.controlnet()


@pytest.mark.parametrize("name", FULL)
@pytest.mark.parametrize("with_control", [False, True])
def test_computing_all_changes_no_bit(model, control, name, with_control):
    network = control if with_control else None
    policy = FULL[name]()
    assert torch.equal(sampled(model, [policy], control=network), sampled(model, [], control=network))


@pytest.mark.parametrize("with_control", [False, True])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", REUSING)
def test_rows_do_not_depend_on_how_they_come_together(model, control, name, split, with_control):
    """Unequal prompts, a batch, control: 0.3 of drift lets the threshold say yes to some rows and no to others."""
    network, drift = control if with_control else None, 0.3
    want = sampled(model, [REUSING[name]()], control=network, drift=drift)
    assert off(sampled(model, [REUSING[name]()], SPLITS[split], network, drift=drift), want) < 3e-5
    plain = sampled(model, [], control=network, drift=drift)
    assert torch.equal(want[0], plain[0]) and off(want, plain) > 1e-3


@pytest.fixture
def quick_collection():
    """Garbage is looked for among what the test makes alone, not in all that torch has loaded (0.3 s each time)."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("quick_collection")
@pytest.mark.parametrize("name", REUSING)
def test_a_second_sampling_is_like_the_first_and_keeps_no_more(model, name):
    policy = REUSING[name]()
    want, sizes = sampled(model, [policy], drift=0.3), []
    for _ in range(50):
        got = sampled(model, [policy], drift=0.3)
        gc.collect()
        sizes.append(policy.memory.bytes)
    assert torch.equal(got, want) and len(set(sizes)) == 1
    assert sizes[0] <= 4 * policy.kept(DEPTH) * 24 * CONFIG.hidden * 4


def looped() -> InnerLoop:
    feedback = Feedback(CONFIG, 1, 2).eval().requires_grad_(False)
    tiny.random_weights(feedback, seed=8)
    return InnerLoop(feedback)


@pytest.mark.parametrize("name", FULL)
def test_computing_all_under_feedback_changes_no_bit(model, name):
    """Which runs blocks of the middle a second time within one pass."""
    for policies in ([looped(), FULL[name]()], [FULL[name](), looped()]):
        assert torch.equal(sampled(model, policies), sampled(model, [looped()]))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", REUSING)
def test_reuse_goes_with_feedback_in_either_order(model, name, first):
    def policies():
        return [looped(), REUSING[name]()] if first else [REUSING[name](), looped()]
    want = sampled(model, policies(), drift=0.3)
    assert off(sampled(model, policies(), SPLITS["single rows"], drift=0.3), want) < 3e-5
    plain = sampled(model, [looped()], drift=0.3)
    assert torch.equal(want[0], plain[0]) and off(want, plain) > 1e-3


@pytest.mark.parametrize("name", REUSING)
def test_a_step_that_a_solver_evaluates_twice_counts_once(model, name):
    """The same input in both halves: both get the answer of a sampling that asks once, of the same work a half."""
    policy, tally, run, halves = REUSING[name](), Tally(), object(), []
    for index in range(STEPS):
        halves.append([model(**tiny.rows(index, 0.3), policies=[policy, tally], step=tiny.step(index, run=run))
                       for _ in range(2)])
    once = Tally()
    want = sampled(model, [REUSING[name](), once], drift=0.3)
    first, second = (torch.stack([half[i] for half in halves]) for i in range(2))
    assert off(first, want) < 1e-6 and off(second, want) < 1e-6
    assert tally.blocks == {block: 2 * rows for block, rows in once.blocks.items()}


@pytest.mark.parametrize("name", REUSING)
def test_under_blocks_compiled_one_by_one_as_much_is_left_out(name):
    torch._dynamo.reset()
    plain, model, counts = tiny.transformer(), tiny.transformer(), []
    counter = CompileCounter()
    for block in model.blocks:
        block.compile(backend=counter, fullgraph=True)
    answers = []
    for network in (plain, model):
        tally = TallyBranches() if isinstance(REUSING[name](), ReuseBranches) else Tally()
        answers.append(sampled(network, [REUSING[name](), tally], drift=0.3))
        counts.append(tally.branches(DEPTH))
    assert off(*answers) < 1e-5 and 0 < counts[0] == counts[1] < 3 * 4 * STEPS * DEPTH
    assert 1 <= counter.frame_count <= 8
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["random", "fora", "every n"])
def test_the_same_input_again_gives_the_same_output(model, name):
    """Gates and inputs agree, so what was kept is what would be computed."""
    schedule = BranchSchedule.of("first", torch.arange(STEPS)[:, None, None].expand(-1, DEPTH, 3) == 0)
    got = sampled(model, [ReuseBranches(schedule)], given=lambda index: tiny.rows(0))
    assert torch.equal(got, got[:1].expand_as(got))


@pytest.mark.parametrize("seed", range(4))
def test_counted_branches_are_those_of_the_schedule(model, seed):
    schedule, tally = random_schedule(seed, 0.3), TallyBranches()
    sampled(model, [ReuseBranches(schedule), tally], SPLITS["single rows"])
    assert tally.branches(DEPTH) == 4 * schedule.computed().sum() and tally.rows == 4 * STEPS


def test_nothing_after_the_first_step_is_the_sum_of_what_was_said(model):
    """x + gate * kept, the kept of the first step under the gates of the third, written out."""
    schedule = BranchSchedule.of("first", torch.arange(STEPS)[:, None, None].expand(-1, DEPTH, 3) == 0)
    policy, run = ReuseBranches(schedule), object()
    model(**tiny.rows(0), policies=[policy], step=tiny.step(0, run=run))
    got = model(**tiny.rows(2), policies=[policy], step=tiny.step(2, run=run))
    given = tiny.rows(2)
    inputs = model.embed(given["latent"], given["timestep"], given["context"], None, None)
    x = inputs.tokens
    for index, block in enumerate(model.blocks):
        gates = block.scale_shift_table.weight + inputs.modulation
        said = [policy.memory.get(tiny.step(2, run=run), (index, name)) for name in block.branches]
        x = x + gates[:, 2:3] * said[0] + said[1] + gates[:, 5:6] * said[2]
    want = model.unpatchify(model.final_layer(x, inputs.time), inputs.grid)[:, :4]
    assert off(got, want) < 1e-5


def test_another_number_of_steps_is_refused(model):
    for policy in (ReuseBranches(random_schedule()), DeltaCache(delta_spans(STEPS, DEPTH, 2, 2)),
                   StepMask([True] * STEPS, DEPTH)):
        with pytest.raises(ValueError, match="6 steps, this sampling takes 5"):
            model(**tiny.rows(0), policies=[policy], step=tiny.step(0, steps=5))


def test_a_schedule_for_fewer_blocks_is_refused(model):
    with pytest.raises(ValueError, match="for 2 blocks, this model has more"):
        sampled(model, [ReuseBranches(BranchSchedule.full(STEPS, 2))])


def test_rows_differ_in_what_the_threshold_says(model):
    """Or the tests above would not show that no row decides for another."""
    asked = []

    class Watched(FirstBlock):
        def decide(self, p):
            asked.append(super().decide(p))
            return asked[-1]

    sampled(model, [Watched(DEPTH, 1.11, 1, Limits(1))], drift=0.3)
    assert any(len(set(choices)) == 2 for choices in asked)
    asked.clear()
    sampled(model, [Watched(DEPTH, 1.11, 1, Limits(1, passes=3))], drift=0.3)
    assert [sum(choices[row] for choices in asked) for row in range(4)] == [3] * 4
