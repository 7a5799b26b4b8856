"""What each method is: FORA's phases, T-GATE's mean and gate, Delta-DiT's groups, Taylor's series."""
import pytest
import torch
from caching import tiny
from caching.tiny import CONFIG, LANES, STEPS, off, sampled

from pixart.accelerate import (
    DeltaCache,
    FirstBlock,
    Limits,
    StepMask,
    Tally,
    TGate,
    delta_spans,
    every_n,
    fora,
    t_gate_schedule,
)
from pixart.accelerate.delta_dit import needed
from pixart.accelerate.taylor import Taylor
from pixart.model.controlnet import PixArtControlNet
from pixart.model.lane_memory import LaneMemory

DEPTH = CONFIG.depth


@pytest.fixture(scope="module")
def model():
    return tiny.transformer()


def whole_steps(schedule) -> list[int]:
    return [step for step, bits in enumerate(schedule.computed().flatten(1)) if bits.all()]


def test_both_phases_of_fora():
    assert whole_steps(fora(20, 3, 3)) == [0, 1, 4, 7, 10, 13, 16, 19]
    assert whole_steps(every_n(20, 3, 3)) == [0, 3, 6, 9, 12, 15, 18]
    assert not fora(20, 3, 3).computed()[2].any()


def test_t_gate_computes_what_the_published_rule_says():
    bits = t_gate_schedule(25, 2, 15, 3).computed()[:, 0]           # the authors' setting for PixArt
    assert [step for step in range(25) if bits[step, 0]] == [0, 1, 2, 3, 6, 9, 12, *range(14, 25)]
    assert [step for step in range(25) if bits[step, 1]] == list(range(15)) and bits[:, 2].all()
    later = t_gate_schedule(25, 2, 15, 3, 4).computed()[15:, 0, 0]
    assert [15 + step for step in range(10) if later[step]] == [16, 20, 24]


def test_cross_attention_behind_the_gate_is_the_mean_of_both_prompts(model):
    gate, seen = 3, []

    class Watched(TGate):
        def branch(self, index, name, p, go):
            said = super().branch(index, name, p, go)
            seen.append((p.step.index, index, name, said))
            return said

    sampled(model, [Watched(t_gate_schedule(STEPS, DEPTH, gate), gate)])
    at = {(step, index): said for step, index, name, said in seen if name == "cross_attn"}
    for index in range(DEPTH):
        mean = (at[gate - 1, index][:2] + at[gate - 1, index][2:]) / 2
        for step in range(gate, STEPS):
            assert torch.equal(at[step, index], torch.cat([mean, mean]))


def test_with_equal_prompts_the_mean_is_what_one_said(model):
    def equal(index: int) -> dict[str, torch.Tensor]:
        given = tiny.rows(index)
        return {**given, "context": given["context"][2:].repeat(2, 1, 1), "mask": given["mask"][2:].repeat(2, 1)}

    schedule = t_gate_schedule(STEPS, DEPTH, 3)
    gated, averaged = (sampled(model, [TGate(schedule, 3, averaged=which)], given=equal)
                       for which in ((), ("attn", "cross_attn")))
    assert off(averaged, gated) < 1e-6


def test_a_row_alone_reuses_its_own(model):
    """As in few-step sampling, which knows no negative prompt."""
    schedule = t_gate_schedule(STEPS, DEPTH, 2)
    alone = [sampled(model, [TGate(schedule, 2, averaged=which)], [[2, 3]])[:, 2:] for which in ((), ("cross_attn",))]
    assert off(*alone) < 1e-6


def test_early_steps_reuse_rear_blocks_and_late_steps_front_blocks():
    spans = delta_spans(20, 28, 2, 21)
    assert spans[1] == range(7, 28) and spans[11] == range(7, 28) and spans[13] == range(1, 22)
    assert [step for step, span in enumerate(spans) if span is None] == list(range(0, 20, 2))
    front, rear = ({span for span in delta_spans(20, 28, 2, 21, boundary=b) if span} for b in (0, 20))
    assert front == {range(1, 22)} and rear == {range(7, 28)}
    assert needed(delta_spans(20, 28, 3, 5), 9) == {range(23, 28)}
    assert needed(delta_spans(20, 28, 5, 5), 10) == {range(23, 28), range(1, 6)}


def test_delta_dit_calls_as_many_blocks_as_it_says(model):
    tally = Tally()
    sampled(model, [DeltaCache(delta_spans(STEPS, DEPTH, 3, 3)), tally])
    assert tally.blocks.total() == 4 * (2 * DEPTH + 4 * (DEPTH - 3))


def test_delta_dit_repeats_a_step_up_to_rounding(model):
    got = sampled(model, [DeltaCache(delta_spans(STEPS, DEPTH, 2, 3))], given=lambda index: tiny.rows(0))
    assert off(got, got[:1].expand_as(got)) < 1e-5


def test_an_identity_group_is_reused_bit_for_bit():
    """Gates and cross-attention's output at zero: the delta is exactly zero."""
    model = tiny.transformer()
    with torch.no_grad():
        for block in model.blocks:
            block.cross_attn.proj.weight.zero_(), block.cross_attn.proj.bias.zero_()
            block.scale_shift_table.weight[[2, 5]] = 0
            model.t_block[1].weight.unflatten(0, (6, -1))[[2, 5]] = 0
            model.t_block[1].bias.unflatten(0, (6, -1))[[2, 5]] = 0
    assert torch.equal(sampled(model, [DeltaCache(delta_spans(STEPS, DEPTH, 2, 3))]), sampled(model, []))


def test_control_stays_live_within_a_reused_span(model):
    """Another strength in the reused step changes the output as it would without the blocks."""
    control = PixArtControlNet(CONFIG, 2).eval().requires_grad_(False)
    tiny.random_weights(control)
    for make in (lambda: DeltaCache(delta_spans(STEPS, DEPTH, 2, 4)), lambda: StepMask([True] + [False] * 5, DEPTH)):
        out = []
        for strength in (1.0, 2.0):
            policy, run = make(), object()
            for index in range(2):
                given = tiny.rows(index)
                residuals = control(model, given["latent"], **given)
                if index:
                    residuals = [None if r is None else strength * r for r in residuals]
                answer = model(**given, control=residuals, policies=[policy], step=tiny.step(index, run=run))
            out.append(answer)
        assert off(*out) > 1e-3


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_taylor_series_carries_polynomials_on(order):
    """Exactly for as many computed steps in equal distance as it has orders, and a parabola by its own formula."""
    memory, run = LaneMemory(), object()
    taylor = Taylor(memory, "x", order)

    def at(index: int) -> torch.Tensor:
        return torch.tensor([[[3.0 + 2 * index]], [[1.0 - index]]])

    for index in (0, 2, 4):
        taylor.keep(tiny.step(index, LANES[:2], run), at(index))
    want = at(4) if order == 0 else at(5)
    assert torch.allclose(taylor.guess(tiny.step(5, LANES[:2], run)), want)
    curve = Taylor(LaneMemory(), "y", 2)
    for index in (0, 1, 2):
        curve.keep(tiny.step(index, LANES[:1], run), torch.full((1, 1, 1), float(index ** 2)))
    assert curve.guess(tiny.step(4, LANES[:1], run)).item() == 4 + 3 * 2 + 2 * 2 ** 2 / 2


def test_rows_with_other_histories_are_carried_on_alone():
    run = object()
    taylor, first, both = Taylor(LaneMemory(), "x", 1), LANES[:1], LANES[:2]
    taylor.keep(tiny.step(0, first, run), torch.full((1, 1, 1), 1.0))
    taylor.keep(tiny.step(1, both, run), torch.tensor([[[3.0]], [[7.0]]]))
    assert taylor.guess(tiny.step(3, both, run)).flatten().tolist() == [7.0, 7.0]
    assert taylor.known(tiny.step(3, LANES[:3], run)) == [True, True, False]


def test_limits_of_the_threshold(model):
    class Seen(FirstBlock):
        def decide(self, p):
            chosen = super().decide(p)
            self.seen = [*getattr(self, "seen", []), *([p.step.index] if all(chosen) else [])]
            return chosen

    def run(limits: Limits, threshold: float = 1e9) -> list[int]:
        policy = Seen(DEPTH, threshold, 0, limits)
        sampled(model, [policy])
        return policy.seen

    assert run(Limits(1)) == [0]
    assert run(Limits(3)) == [0, 1, 2]
    assert run(Limits(1, in_a_row=2)) == [0, 3]
    assert run(Limits(1, passes=3)) == [0, 3, 5]                    # the last step of each window
    assert run(Limits(1, passes=3), threshold=0) == [0, 1, 4]       # the first
    assert run(Limits(2, passes=2), threshold=0) == [0, 1]
    assert run(Limits(2, passes=9)) == [0, 1, 2, 3, 4, 5]
    assert run(Limits(1, allowed=range(2, 5))) == [0, 1, 5]
    assert run(Limits(1, passes=4, allowed=range(2, 5))) == [0, 1, 4, 5]


@pytest.mark.parametrize("make, message", [
    (lambda: fora(6, 2, 0), "every 0 steps"), (lambda: t_gate_schedule(6, 2, 0), "gate 0"),
    (lambda: TGate(fora(6, 2, 2), 0), "gate 0"), (lambda: delta_spans(6, 4, 2, 4), "of 4 blocks 0 to 3"),
    (lambda: FirstBlock(5, -1.0), "threshold is -1"), (lambda: FirstBlock(5, float("nan")), "threshold is nan"),
    (lambda: FirstBlock(5, 0.1, 3), "Taylor order 3"), (lambda: FirstBlock(5, front=0), "at least one first block"),
    (lambda: FirstBlock(2, front=1, back=1), "at least one must be left"), (lambda: Limits(0), "start at 1"),
])
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
